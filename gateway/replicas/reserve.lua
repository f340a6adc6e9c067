-- Takes one request, its estimated tokens and a place among the running ones from every account, or nothing at all.
--
-- KEYS: for each account its counts (a string) and its leases (a sorted set: lease -> when it ends, ms).
-- ARGV: lease, how long it lasts (ms), estimate; then for each account its limits.
-- Returns {0, standing, parts...} when it took them, where the parts are those in which each account counts it, otherwise
-- {1, standing, account, limit, wait ms}. The standing is the first account's: what it counts of requests, tokens and a
-- day's tokens, and in how many ms none of either of them is counted any more.

local lease, lease_ms, estimate = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local units, texts = {1, estimate, estimate}, {'1', ARGV[3], ARGV[3]}

-- In how many ms the parts of a ring up to `part` have left.
local function wait_for(account, kind, part)
  return (part + PARTS) * WIDTHS[kind] * 1000 - account.clock
end

-- Up to which part a ring has to have left before a request fits.
local function too_many(account, kind, limit)
  local most, left, kept = math.max(limit - units[kind], 0), account.sums[kind], account.kept
  local part, known = account.newest[kind] - PARTS, account.known[kind]
  while left > most and part < known do
    part = part + 1
    left = left - held(kept, kind, part)
  end
  return part
end

-- In how many ms nothing of a kind is counted any more.
local function until_empty(account, kind, just_taken)
  if account.limits[kind] == 0 or account.sums[kind] == 0 then
    return 0
  end
  local last, first = account.newest[kind], account.newest[kind] - PARTS
  if not just_taken or units[kind] == 0 then
    -- Whatever is in the place of a later part than was known is what its forerunner has left there.
    last = math.min(last, account.known[kind])
    while last > first and held(account.kept, kind, last) == 0 do
      last = last - 1
    end
  end
  return wait_for(account, kind, last)
end

local function standing(account, just_taken)
  local sums, kind = account.sums, account.limits[2] > 0 and 2 or 3
  return {sums[1], sums[2], sums[3], until_empty(account, 1, just_taken), until_empty(account, kind, just_taken)}
end

local accounts = {}
local hindered, hindrance, wait = 0, 0, 0

local function hinder(i, limit, ms)
  if ms > wait then
    hindered, hindrance, wait = i, limit, ms
  end
end

for i = 1, #KEYS / 2 do
  local account, limits = counted(KEYS[2 * i - 1]), limits_of(i)
  account.leases, account.limits = KEYS[2 * i], limits
  redis.call('ZREMRANGEBYSCORE', account.leases, '-inf', now)
  if limits[4] > 0 and redis.call('ZCARD', account.leases) >= limits[4] then
    hinder(i, 4, 1000)
  end
  for kind = 1, 3 do
    local sum = account.sums[kind]
    -- A request larger than the whole limit comes in when nothing is counted.
    if limits[kind] > 0 and sum > 0 and sum + units[kind] > limits[kind] then
      hinder(i, kind, wait_for(account, kind, too_many(account, kind, limits[kind])))
    end
  end
  accounts[i] = account
end

if hindered > 0 then
  for _, account in ipairs(accounts) do
    -- Where nothing is kept there is nothing to bring up to date.
    if #account.kept > 0 and #account.changes > 0 then
      write(account)
    end
  end
  return {1, standing(accounts[1], false), hindered, hindrance, wait}
end

local answer = {0, 0}
for i, account in ipairs(accounts) do
  take(account, account.limits, units, texts)
  redis.call('ZADD', account.leases, now + lease_ms, lease)
  redis.call('PEXPIRE', account.leases, lease_ms + SPARE_MS)
  answer[2 + i] = account.newest[1]
end
answer[2] = standing(accounts[1], true)
return answer
