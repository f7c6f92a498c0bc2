-- ring: make a step READY (again) and push its doorbell: given back, lost on the way, lease expired, timer due, held.
-- KEYS: 1 epoch, 2 run, 3 leases, 4 timers, 5 held, 6 list, 7 rung, 8 journal, 9 feed
-- ARGV: 1 token, 2 epoch number, 3 step, 4 state it must have, 5 ring, 6 rings so far, 7 side L|R, 8 bytes, 9 tenant/run,
--       10 submitter, 11 lease member or '', 12 must the lease be over (1|''), 13 timer member or '', 14 event type,
--       15 event data (JSON), 16.. field, value ... ('' = absent)
-- Returns: OK | ALIVE | CONFLICT state | GONE | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local step, member, at = ARGV[3], ARGV[9] .. '/' .. ARGV[3], clock()
local v = redis.call('HMGET', KEYS[2], 's:' .. step, '@state')
if not v[2] then return {'GONE'} end
if v[1] ~= ARGV[4] then return {'CONFLICT', v[1] or ''} end
if ARGV[12] == '1' and tonumber(redis.call('ZSCORE', KEYS[3], ARGV[11]) or 0) > at then return {'ALIVE'} end
if ARGV[13] ~= '' and redis.call('ZREM', KEYS[4], ARGV[13]) == 0 then return {'CONFLICT', 'timer'} end
if ARGV[11] ~= '' then redis.call('ZREM', KEYS[3], ARGV[11]) end
redis.call('ZREM', KEYS[5], member)
if string.sub(v[1], 1, 6) == 'READY|' then redis.call('ZREM', KEYS[7], member .. '/' .. string.sub(v[1], 7)) end
redis.call('HSET', KEYS[2], 's:' .. step, 'READY|' .. ARGV[5], 'n:' .. step, ARGV[6])
for i = 16, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[2], ARGV[i]) else redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
end
redis.call(ARGV[7] .. 'PUSH', KEYS[6], ARGV[8])
redis.call('ZADD', KEYS[7], at, member .. '/' .. ARGV[5])
tell(KEYS[2], KEYS[9], KEYS[8], ARGV[2], ARGV[9], ARGV[10], ARGV[14], step, at, ARGV[15])
return {'OK'}
