-- Takes one request, its estimated tokens and a place among the running ones from every account, or nothing at all.
--
-- KEYS: for each account its bucket (a hash) and its leases (a sorted set: lease -> when it ends, ms).
-- ARGV: lease, how long it lasts (ms), estimate; then for each account requests per minute, tokens per minute, tokens per
--       day, concurrent; 0 is no limit.
-- Returns {0, debts...} when it took them, otherwise {1, account, limit, wait ms, debts...}: debts are what the first
-- account owes afterwards, as gateway/buckets.py counts, a minute's in 1/60000 units and a day's in 1/86400.
-- Doubles hold all of it exactly: 10^9 tokens a day are 8.64e13, of 2^53 = 9e15.

local MINUTE_MS, DAY_S = 60000, 86400
local MAX_DEBT = 4e15
-- A bucket that is full again says nothing; it is kept this much longer all the same, for clocks that are set back.
local SPARE_MS = 60000

local time = redis.call('TIME')
local now_s = tonumber(time[1])
local now = now_s * 1000 + math.floor(tonumber(time[2]) / 1000)

local lease, lease_ms, estimate = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function paid_off(debt, limit, elapsed)
  return math.max(0, (tonumber(debt) or 0) - limit * elapsed)
end

local function text(number)
  return string.format('%.0f', number)
end

local accounts = {}
local hindered, hindrance, wait = 0, 0, 0

local function hinder(account, limit, ms)
  if ms > wait then
    hindered, hindrance, wait = account, limit, ms
  end
end

for i = 1, #KEYS / 2 do
  local bucket, leases = KEYS[2 * i - 1], KEYS[2 * i]
  local at = 4 * i
  local limits = {tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])}
  local kept = redis.call('HMGET', bucket, 'at', 'requests', 'tokens', 'day')
  -- A clock that was set back, as a promoted replica's may be, pays nothing off and counts from where it is.
  local since = tonumber(kept[1]) or now
  local requests = paid_off(kept[2], limits[1], math.max(0, now - since))
  local tokens = paid_off(kept[3], limits[2], math.max(0, now - since))
  local day = paid_off(kept[4], limits[3], math.max(0, now_s - math.floor(since / 1000)))
  if limits[1] == 0 then requests = 0 end
  if limits[2] == 0 then tokens = 0 end
  if limits[3] == 0 then day = 0 end

  redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
  if limits[4] > 0 and redis.call('ZCARD', leases) >= limits[4] then
    hinder(i, 4, 1000)
  end
  if limits[1] > 0 then
    hinder(i, 1, math.ceil((requests + MINUTE_MS - limits[1] * MINUTE_MS) / limits[1]))
  end
  if limits[2] > 0 then
    hinder(i, 2, math.ceil(math.min(tokens + (estimate - limits[2]) * MINUTE_MS, tokens) / limits[2]))
  end
  if limits[3] > 0 then
    hinder(i, 3, math.ceil(math.min(day + (estimate - limits[3]) * DAY_S, day) / limits[3]) * 1000)
  end
  accounts[i] = {bucket, leases, limits, requests, tokens, day}
end

local first = accounts[1]
if hindered > 0 then
  return {1, hindered, hindrance, wait, text(first[4]), text(first[5]), text(first[6])}
end

for _, account in ipairs(accounts) do
  local bucket, leases, limits = account[1], account[2], account[3]
  local full_ms = 0
  local fields = {'at', text(now)}
  if limits[1] > 0 then
    account[4] = account[4] + MINUTE_MS
    full_ms = math.max(full_ms, account[4] / limits[1])
  end
  if limits[2] > 0 then
    account[5] = math.min(account[5] + estimate * MINUTE_MS, MAX_DEBT)
    full_ms = math.max(full_ms, account[5] / limits[2])
  end
  if limits[3] > 0 then
    account[6] = math.min(account[6] + estimate * DAY_S, MAX_DEBT)
    full_ms = math.max(full_ms, account[6] / limits[3] * 1000)
  end
  redis.call('HSET', bucket, 'at', text(now), 'requests', text(account[4]), 'tokens', text(account[5]), 'day', text(account[6]))
  redis.call('PEXPIRE', bucket, text(math.ceil(full_ms) + SPARE_MS))
  redis.call('ZADD', leases, text(now + lease_ms), lease)
  redis.call('PEXPIRE', leases, text(lease_ms + SPARE_MS))
end
return {0, text(first[4]), text(first[5]), text(first[6])}
