-- hatch: push a new canary at the producing end of a queue list, in place of the last one.
-- KEYS: 1 epoch, 2 canary, 3 list
-- ARGV: 1 token, 2 new canary id, 3 id it must replace or '', 4 bytes
-- Returns: OK | OTHER | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
if (redis.call('HGET', KEYS[2], 'id') or '') ~= ARGV[3] then return {'OTHER'} end
redis.call('HSET', KEYS[2], 'id', ARGV[2], 'pushed', number(clock()))
redis.call('HDEL', KEYS[2], 'eaten')
redis.call('LPUSH', KEYS[3], ARGV[4])
return {'OK'}
