-- Makes leases of one account last longer; those that Redis has lost are there again.
-- KEYS: the account's leases. ARGV: how long they last (ms), leases...
local lease_ms = tonumber(ARGV[1])
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], now + lease_ms, ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], lease_ms + SPARE_MS)
return #ARGV - 1
