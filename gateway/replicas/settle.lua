-- Ends a reservation: its place among the running ones, and the difference between its estimate and what it took.
--
-- KEYS: as in reserve.lua. ARGV: lease, tokens to add (below 0: to give back), requests to give back (0 or 1); then for
-- each account requests per minute, tokens per minute, tokens per day, concurrent; 0 is no limit.
-- Only a lease that is there gives anything back: a reservation that Redis never heard of took nothing.

local lease, tokens_more, requests_back = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

for i = 1, #KEYS / 2 do
  local bucket, leases = KEYS[2 * i - 1], KEYS[2 * i]
  local known = redis.call('ZREM', leases, lease) == 1
  if tokens_more > 0 or (known and (tokens_more < 0 or requests_back > 0)) then
    local limits = limits_of(i)
    local debts = owed(bucket, limits)
    if known then
      debts[1] = debts[1] - requests_back * UNITS[1]
    end
    debts[2] = debts[2] + tokens_more * UNITS[2]
    debts[3] = debts[3] + tokens_more * UNITS[3]
    keep(bucket, limits, debts)
  end
end
return 1
