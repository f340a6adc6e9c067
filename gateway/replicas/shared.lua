-- The beginning of each script beside it, put in front of it when it is loaded: Redis' clock, and how accounts are counted.
--
-- An account's counts are a string of 64-bit integers, of which missing ones are 0: a head, and three rings of parts as
-- gateway/windows.py has them, of requests a minute, tokens a minute and tokens a day. Doubles hold all of it exactly.

local PARTS = 61
-- How wide a part is, in seconds.
local WIDTHS = {1, 1, 1440}
-- The head: the newest part; how many ms Redis' clock has been set back; what the parts of each ring hold together.
local AT, BEHIND, SUMS = 0, 1, 1
local RINGS = {5, 5 + PARTS, 5 + 2 * PARTS}
-- What has left its window is kept this much longer, for clocks of replicas that differ.
local SPARE_MS = 60000

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Those of account `i`: requests a minute, tokens a minute, tokens a day, how many may run; 0 is no limit. They are the
-- last arguments.
local function limits_of(i)
  local at = #ARGV - 4 * (#KEYS / 2 - i + 1)
  return {tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])}
end

local function number_at(kept, place)
  return #kept >= 8 * place + 8 and struct.unpack('>i8', kept, 8 * place + 1) or 0
end

local function place_of(kind, part)
  return RINGS[kind] + part % PARTS
end

-- Adds to what BITFIELD shall do: `how` is SET or INCRBY.
local function change(changes, how, place, units)
  local last = #changes
  changes[last + 1], changes[last + 2], changes[last + 3], changes[last + 4] = how, 'i64', '#' .. place, units
end

-- What part `part` of a ring holds.
local function held(account, kind, part)
  -- Whatever is in the place of a later part than was known is what its forerunner has left there.
  return part > account.known[kind] and 0 or number_at(account.kept, place_of(kind, part))
end

-- An account's counts as of now: what was `kept`; the newest part of each ring, and what was the newest when it was
-- `known`; the `sums` of the rings; the `clock` in ms; and the `changes` that this needs.
local function counted(counts)
  local kept = redis.call('GET', counts) or ''
  local at, behind = number_at(kept, AT), number_at(kept, BEHIND)
  local account = {
    kept = kept, counts = counts, clock = now + behind, changes = {}, newest = {}, known = {at, at, math.floor(at / 1440)},
    sums = {number_at(kept, SUMS + 1), number_at(kept, SUMS + 2), number_at(kept, SUMS + 3)},
  }
  if account.clock < at * 1000 then
    -- A clock that was set back, as a promoted replica's may be: it goes on from where it was, and nothing has passed.
    change(account.changes, 'SET', BEHIND, at * 1000 - now)
    account.clock = at * 1000
  end
  local now_at = math.floor(account.clock / 1000)
  for kind = 1, 3 do
    local newest, known, sum = math.floor(now_at / WIDTHS[kind]), account.known[kind], account.sums[kind]
    if sum > 0 and newest > known then
      for part = known + 1 - PARTS, math.min(known, newest - PARTS) do
        local units = held(account, kind, part)
        if units > 0 then
          sum = sum - units
          change(account.changes, 'SET', place_of(kind, part), 0)
        end
      end
      change(account.changes, 'SET', SUMS + kind, sum)
      account.sums[kind] = sum
    end
    account.newest[kind] = newest
  end
  if now_at > at then
    change(account.changes, 'SET', AT, now_at)
  end
  return account
end

local function write(account)
  redis.call('BITFIELD', account.counts, unpack(account.changes))
end

-- Counts so many units of each kind more, where it is limited. Lets the counts live until everything has left.
local function take(account, limits, units)
  local taken = false
  for kind = 1, 3 do
    if limits[kind] > 0 and units[kind] > 0 then
      taken = true
      account.sums[kind] = account.sums[kind] + units[kind]
      change(account.changes, 'INCRBY', SUMS + kind, units[kind])
      change(account.changes, 'INCRBY', place_of(kind, account.newest[kind]), units[kind])
    end
  end
  if taken then
    write(account)
    redis.call('PEXPIRE', account.counts, PARTS * 1000 * WIDTHS[limits[3] > 0 and 3 or 1] + SPARE_MS)
  end
end
