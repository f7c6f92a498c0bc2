-- commit: write what the holder of a run's lock decided, all or nothing. Unlocks when the inbox is empty.
-- KEYS: 1 epoch, 2 run, 3 inbox, 4 inboxes, 5 timers, 6 leases, 7 journal, 8 feed, 9 parked, 10 nudge,
--       11.. list, rung, list, rung ...
-- ARGV: 1 token, 2 epoch number, 3 lock token, 4 lock ms, 5 tenant/run, 6 submitter, 7 consumed entries, 8 name of this
--       commit (asked twice, it is written once: not every commit has a write that would refuse its repetition), groups:
--       writes (field, from, to; '' = absent), posts (entry), leases (member), timers (member, due ms; '' = drop),
--       rings (list number, side L|R, bytes, '' or BEFORE|AFTER and
--       the doorbell beside which it goes while that waits, member), events (type, step, flags j|jp|'', member, data)
-- Returns: OK remaining entries | CONFLICT field | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local run, at, i = KEYS[2], clock(), 8
local function take() i = i + 1; return ARGV[i] end
local held = redis.call('HMGET', run, '@lock', '@commit')
if held[2] == ARGV[8] then return {'OK', redis.call('LRANGE', KEYS[3], 0, 99)} end
if string.match(held[1] or '', '^(.*)|%d+$') ~= ARGV[3] then return {'CONFLICT', '@lock'} end
local writes = tonumber(take())
for w = 0, writes - 1 do
  local field = ARGV[i + 1 + w * 3]
  if (redis.call('HGET', run, field) or '') ~= ARGV[i + 2 + w * 3] then return {'CONFLICT', field} end
end
for _ = 1, writes do
  local field, _, to = take(), take(), take()
  if to == '' then redis.call('HDEL', run, field) else redis.call('HSET', run, field, to) end
end
redis.call('LTRIM', KEYS[3], ARGV[7], -1)
for _ = 1, take() do redis.call('RPUSH', KEYS[3], take()) end
for _ = 1, take() do redis.call('ZREM', KEYS[6], take()) end
for _ = 1, take() do
  local member, due = take(), take()
  if due == '' then redis.call('ZREM', KEYS[5], member) else redis.call('ZADD', KEYS[5], due, member) end
end
for _ = 1, take() do
  local n, side, bytes, by, near, member = 9 + 2 * take(), take(), take(), take(), take(), take()
  if by == '' or redis.call('LINSERT', KEYS[n], by, near, bytes) < 1 then redis.call(side .. 'PUSH', KEYS[n], bytes) end
  redis.call('ZADD', KEYS[n + 1], at, member)
end
for _ = 1, take() do
  local kind, step, flags, member, data = take(), take(), take(), take(), take()
  local id = tell(run, KEYS[8], flags ~= '' and KEYS[7], ARGV[2], ARGV[5], ARGV[6], kind, step, at, data)
  if flags == 'jp' then park(KEYS[9], KEYS[10], id, member) end
end
local left = redis.call('LRANGE', KEYS[3], 0, 99)
if #left > 0 then
  redis.call('HSET', run, '@lock', ARGV[3] .. '|' .. number(at + ARGV[4]), '@commit', ARGV[8])
else
  redis.call('HDEL', run, '@lock')
  redis.call('ZREM', KEYS[4], ARGV[5])
end
return {'OK', left}
