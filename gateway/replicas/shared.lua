-- The beginning of each script beside it, put in front of it when it is loaded: Redis' clock, and how accounts are counted.
--
-- An account's counts are a string of 64-bit integers, of which missing ones are 0: a head, and three rings of parts as
-- gateway/windows.py has them, of requests a minute, tokens a minute and tokens a day. Doubles hold all of it exactly.
-- What BITFIELD is told is text wherever that is at hand: making text of a number costs as much as the rest of a step.

local PARTS = 61
-- How wide a part is, in seconds.
local WIDTHS = {1, 1, 1440}
-- The head: the newest part; how many ms Redis' clock has been set back; what the parts of each ring hold together.
local AT, BEHIND, SUMS = '#0', '#1', {'#2', '#3', '#4'}
local RINGS = {5, 5 + PARTS, 5 + 2 * PARTS}
-- What has left its window is kept this much longer, for clocks of replicas that differ.
local SPARE_MS = 60000
local KEEP_MS = {'121000', '121000', '87900000'}

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Those of account `i`: requests a minute, tokens a minute, tokens a day, how many may run; 0 is no limit. They are the
-- last arguments.
local function limits_of(i)
  local at = #ARGV - 4 * (#KEYS / 2 - i + 1)
  return {tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])}
end

-- What part `part` of a ring holds, or held when it was there.
local function held(kept, kind, part)
  local from = 8 * (RINGS[kind] + part % PARTS) + 1
  return #kept > from and struct.unpack('>i8', kept, from) or 0
end

-- Adds to what BITFIELD shall do: `how` is SET or INCRBY, `part` of the ring and its sum are what it is done to.
local function change(changes, how, kind, part, units, sum)
  local last = #changes
  changes[last + 1], changes[last + 2], changes[last + 3], changes[last + 4] = how, 'i64', SUMS[kind], sum
  changes[last + 5], changes[last + 6], changes[last + 7], changes[last + 8] =
    how, 'i64', '#' .. RINGS[kind] + part % PARTS, units
end

local function set(changes, place, value)
  local last = #changes
  changes[last + 1], changes[last + 2], changes[last + 3], changes[last + 4] = 'SET', 'i64', place, value
end

-- Forgets what has left the windows of an account when `now_at` is the newest part of a minute.
local function advance(account, now_at)
  for kind = 1, 3 do
    local newest, known, sum = math.floor(now_at / WIDTHS[kind]), account.known[kind], account.sums[kind]
    if sum > 0 then
      for part = known + 1 - PARTS, math.min(known, newest - PARTS) do
        local units = held(account.kept, kind, part)
        if units > 0 then
          sum = sum - units
          change(account.changes, 'SET', kind, part, '0', sum)
        end
      end
      account.sums[kind] = sum
    end
    account.newest[kind] = newest
  end
  set(account.changes, AT, now_at)
end

-- An account's counts as of now: what was `kept`; the newest part of each ring, and what was the newest when it was
-- `known`; the `sums` of the rings; the `clock` in ms; and the `changes` that this needs.
local function counted(counts)
  local kept = redis.call('GET', counts) or ''
  local at, behind, requests, tokens, day = 0, 0, 0, 0, 0
  if #kept >= 40 then
    at, behind, requests, tokens, day = struct.unpack('>i8i8i8i8i8', kept)
  end
  local known = {at, at, math.floor(at / 1440)}
  local account = {
    kept = kept, counts = counts, clock = now + behind, changes = {}, known = known, newest = known,
    sums = {requests, tokens, day},
  }
  if account.clock < at * 1000 then
    -- A clock that was set back, as a promoted replica's may be: it goes on from where it was, and nothing has passed.
    set(account.changes, BEHIND, at * 1000 - now)
    account.clock = at * 1000
  end
  local now_at = math.floor(account.clock / 1000)
  if now_at > at then
    account.newest = {}
    advance(account, now_at)
  end
  return account
end

local function write(account)
  redis.call('BITFIELD', account.counts, unpack(account.changes))
end

-- Counts so many units of each kind more, where it is limited; `units` are numbers, `texts` the same as text. Lets the
-- counts live until everything has left.
local function take(account, limits, units, texts)
  local taken = false
  for kind = 1, 3 do
    if limits[kind] > 0 and units[kind] > 0 then
      taken = true
      account.sums[kind] = account.sums[kind] + units[kind]
      change(account.changes, 'INCRBY', kind, account.newest[kind], texts[kind], texts[kind])
    end
  end
  if taken then
    write(account)
    redis.call('PEXPIRE', account.counts, KEEP_MS[limits[3] > 0 and 3 or 1])
  end
end
