-- eat: a canary doorbell was consumed: everything rung before it in its list has been popped.
-- KEYS: 1 epoch, 2 canary
-- ARGV: 1 token, 2 canary id
-- Returns: OK | OTHER | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
if redis.call('HGET', KEYS[2], 'id') ~= ARGV[2] then return {'OTHER'} end
redis.call('HSET', KEYS[2], 'eaten', number(clock()))
return {'OK'}
