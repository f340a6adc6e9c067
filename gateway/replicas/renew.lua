-- Makes leases of one account last longer; those that Redis has lost are there again.
-- KEYS: the account's leases. ARGV: how long they last (ms), leases...
local time = redis.call('TIME')
local ends = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[1]))
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], ends, ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', tonumber(ARGV[1]) + 60000))
return #ARGV - 1
