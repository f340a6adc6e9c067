-- Ends a reservation: its place among the running ones, and the difference between its estimate and what it took.
--
-- KEYS: as in reserve.lua. ARGV: lease, how long it lasted at first (ms), tokens to add (below 0: to give back), requests
-- to give back (0 or 1); the part in which each account counts it, 0 where nobody has been told; then each one's limits.
-- What is given back is not counted any more where it was, what is added is counted now. Only a lease that is there gives
-- anything back: a reservation that Redis never heard of took nothing.

local lease, lease_ms, more, requests_back = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local units, texts = {requests_back, -more, -more}, {'-1', ARGV[3], ARGV[3]}

local function give_back(counts, limits, part)
  local kept, changes = redis.call('GET', counts) or '', {}
  local at = #kept >= 8 and struct.unpack('>i8', kept) or 0
  for kind = 1, 3 do
    local reserved = math.floor(part / WIDTHS[kind])
    local passed = math.floor(at / WIDTHS[kind]) - reserved
    if limits[kind] > 0 and units[kind] > 0 and passed >= 0 and passed < PARTS then
      local there = held(kept, kind, reserved)
      local back = there < units[kind] and -there or texts[kind]
      change(changes, 'INCRBY', kind, reserved, back, back)
    end
  end
  if #changes > 0 then
    redis.call('BITFIELD', counts, unpack(changes))
  end
end

for i = 1, #KEYS / 2 do
  local counts, leases, limits, part = KEYS[2 * i - 1], KEYS[2 * i], limits_of(i), tonumber(ARGV[4 + i])
  if part == 0 then
    -- A lease that nobody was told of has not been renewed. Where the clock has been set back this is too early, which
    -- does no harm: what is taken from an earlier part, if it holds as much, would have left before.
    local ends = redis.call('ZSCORE', leases, lease)
    part = ends and math.floor((tonumber(ends) - lease_ms) / 1000) or 0
  end
  local known = redis.call('ZREM', leases, lease) == 1
  if more > 0 then
    take(counted(counts), limits, {0, more, more}, texts)
  end
  if known and (more < 0 or requests_back > 0) then
    give_back(counts, limits, part)
  end
end
return 1
