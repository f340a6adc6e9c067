-- Takes one request, its estimated tokens and a place among the running ones from every account, or nothing at all.
--
-- KEYS: for each account its bucket (a hash) and its leases (a sorted set: lease -> when it ends, ms).
-- ARGV: lease, how long it lasts (ms), estimate; then for each account requests per minute, tokens per minute, tokens per
--       day, concurrent; 0 is no limit.
-- Returns {0, debts...} when it took them, otherwise {1, account, limit, wait ms, debts...}: debts are what the first
-- account owes afterwards.

local lease, lease_ms, estimate = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local accounts = {}
local hindered, hindrance, wait = 0, 0, 0

local function hinder(account, limit, ms)
  if ms > wait then
    hindered, hindrance, wait = account, limit, ms
  end
end

for i = 1, #KEYS / 2 do
  local bucket, leases, limits = KEYS[2 * i - 1], KEYS[2 * i], limits_of(i)
  local debts = owed(bucket, limits)
  redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
  if limits[4] > 0 and redis.call('ZCARD', leases) >= limits[4] then
    hinder(i, 4, 1000)
  end
  if limits[1] > 0 then
    hinder(i, 1, math.ceil((debts[1] + UNITS[1] - limits[1] * UNITS[1]) / limits[1]))
  end
  for k = 2, 3 do
    if limits[k] > 0 then
      -- A request larger than the bucket comes in when it is full.
      local over = math.min(debts[k] + (estimate - limits[k]) * UNITS[k], debts[k])
      hinder(i, k, math.ceil(over / limits[k]) * PAYS_MS[k])
    end
  end
  accounts[i] = {bucket, leases, limits, debts}
end

local first = accounts[1][4]
if hindered > 0 then
  return {1, hindered, hindrance, wait, text(first[1]), text(first[2]), text(first[3])}
end

for _, account in ipairs(accounts) do
  local bucket, leases, limits, debts = unpack(account)
  debts[1] = debts[1] + UNITS[1]
  debts[2] = debts[2] + estimate * UNITS[2]
  debts[3] = debts[3] + estimate * UNITS[3]
  keep(bucket, limits, debts)
  redis.call('ZADD', leases, text(now + lease_ms), lease)
  redis.call('PEXPIRE', leases, text(lease_ms + SPARE_MS))
end
return {0, text(first[1]), text(first[2]), text(first[3])}
