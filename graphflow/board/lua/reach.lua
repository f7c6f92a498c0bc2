-- reach: SQL has everything up to a sequence: who beats learns of it, and what waited for it may be released.
-- KEYS: 1 epoch, 2 released, 3 parked
-- ARGV: 1 token, 2 sequence, 3 most members to return
-- Returns: OK members that may be released, number of all that wait | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
redis.call('SET', KEYS[2], ARGV[2])
local parked = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', ARGV[2], 'LIMIT', 0, ARGV[3])
return {'OK', parked, redis.call('ZCARD', KEYS[3])}
