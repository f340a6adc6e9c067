-- Ends a reservation: its place among the running ones, and the difference between its estimate and what it took.
--
-- KEYS: as in reserve.lua. ARGV: lease, tokens to add (below 0: to give back), requests to give back (0 or 1); then for
-- each account requests per minute, tokens per minute, tokens per day, concurrent; 0 is no limit.
-- Only a lease that is there gives anything back: a reservation that Redis never heard of took nothing.

local MINUTE_MS, DAY_S = 60000, 86400
local MAX_DEBT = 4e15
local SPARE_MS = 60000

local time = redis.call('TIME')
local now_s = tonumber(time[1])
local now = now_s * 1000 + math.floor(tonumber(time[2]) / 1000)

local lease, tokens_more, requests_back = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function text(number)
  return string.format('%.0f', number)
end

for i = 1, #KEYS / 2 do
  local bucket, leases = KEYS[2 * i - 1], KEYS[2 * i]
  local known = redis.call('ZREM', leases, lease) == 1
  if tokens_more > 0 or (known and (tokens_more < 0 or requests_back > 0)) then
    local at = 4 * i
    local kept = redis.call('HMGET', bucket, 'at', 'requests', 'tokens', 'day')
    local since = tonumber(kept[1]) or now
    local full_ms = 0
    local function debt_of(kept_debt, limit, elapsed, more, pays_ms)
      if limit == 0 then return 0 end
      local debt = math.max(0, (tonumber(kept_debt) or 0) - limit * elapsed)
      debt = math.min(math.max(0, debt + more), MAX_DEBT)
      full_ms = math.max(full_ms, debt / limit * pays_ms)
      return debt
    end
    local elapsed = math.max(0, now - since)
    local elapsed_s = math.max(0, now_s - math.floor(since / 1000))
    local requests = debt_of(kept[2], tonumber(ARGV[at]), elapsed, known and -requests_back * MINUTE_MS or 0, 1)
    local tokens = debt_of(kept[3], tonumber(ARGV[at + 1]), elapsed, tokens_more * MINUTE_MS, 1)
    local day = debt_of(kept[4], tonumber(ARGV[at + 2]), elapsed_s, tokens_more * DAY_S, 1000)
    redis.call('HSET', bucket, 'at', text(now), 'requests', text(requests), 'tokens', text(tokens), 'day', text(day))
    redis.call('PEXPIRE', bucket, text(math.ceil(full_ms) + SPARE_MS))
  end
end
return 1
