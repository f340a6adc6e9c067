-- The beginning of each script beside it, put in front of it when it is loaded: Redis' clock, and how buckets are kept.
--
-- A bucket's three debts are those of requests per minute, tokens per minute and tokens per day, as gateway/buckets.py
-- counts them: a minute's in 1/60000 units, paid off by the limit each ms, a day's in 1/86400, paid off each second.

local UNITS = {60000, 60000, 86400}
local PAYS_MS = {1, 1, 1000}
-- Doubles hold all of it exactly: 10^9 tokens a day are 8.64e13, of 2^53 = 9e15.
local MAX_DEBT = 4e15
-- A bucket that is full again says nothing; it is kept this much longer all the same, for clocks that are set back.
local SPARE_MS = 60000

local time = redis.call('TIME')
local now_s = tonumber(time[1])
local now = now_s * 1000 + math.floor(tonumber(time[2]) / 1000)

local function text(number)
  return string.format('%.0f', number)
end

-- Those of account `i`, from the fourth argument on: the three of its debts, and how many may run; 0 is no limit.
local function limits_of(i)
  local at = 4 * i
  return {tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])}
end

-- What a bucket owes now.
local function owed(bucket, limits)
  local kept = redis.call('HMGET', bucket, 'at', 'requests', 'tokens', 'day')
  -- A clock that was set back, as a promoted replica's may be, pays nothing off and counts from where it is.
  local since = tonumber(kept[1]) or now
  local elapsed = math.max(0, now - since)
  local elapsed_s = math.max(0, now_s - math.floor(since / 1000))
  local function left(debt, limit, paid)
    if limit == 0 then return 0 end
    return math.max(0, (tonumber(debt) or 0) - limit * paid)
  end
  return {left(kept[2], limits[1], elapsed), left(kept[3], limits[2], elapsed), left(kept[4], limits[3], elapsed_s)}
end

-- Writes what a bucket owes from now on, brought to between nothing and the most that can be counted.
local function keep(bucket, limits, debts)
  local full_ms = 0
  for k = 1, 3 do
    if limits[k] == 0 then
      debts[k] = 0
    else
      debts[k] = math.min(math.max(0, debts[k]), MAX_DEBT)
      full_ms = math.max(full_ms, debts[k] / limits[k] * PAYS_MS[k])
    end
  end
  redis.call('HSET', bucket, 'at', text(now), 'requests', text(debts[1]), 'tokens', text(debts[2]), 'day', text(debts[3]))
  redis.call('PEXPIRE', bucket, text(math.ceil(full_ms) + SPARE_MS))
end
