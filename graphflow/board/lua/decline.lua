-- decline: a worker that cannot do a step gives it back: READY, held, and rung again when the time is over. Its fence
-- stands where a ring stands: no doorbell is on its way that names it.
-- KEYS: 1 epoch, 2 run, 3 leases, 4 held, 5 feed
-- ARGV: 1 token, 2 epoch number, 3 step, 4 fence, 5 tenant/run, 6 delay ms, 7 event data (JSON)
-- Returns: OK | FENCED state | GONE | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local step, member = ARGV[3], ARGV[5] .. '/' .. ARGV[3]
local was, at = redis.call('HGET', KEYS[2], 's:' .. step), clock()
if not was then return {'GONE'} end
if was == 'READY|' .. ARGV[4] then return {'OK'} end
if was ~= 'RUNNING|' .. ARGV[4] then return {'FENCED', was} end
redis.call('ZREM', KEYS[3], member .. '/' .. ARGV[4])
redis.call('HSET', KEYS[2], 's:' .. step, 'READY|' .. ARGV[4])
redis.call('HDEL', KEYS[2], 'd:' .. step)
redis.call('ZADD', KEYS[4], at + ARGV[6], member)
tell(KEYS[2], KEYS[5], nil, ARGV[2], '', '', 'step.declined', step, at, ARGV[7])
return {'OK'}
