-- reassert: after a rebuild, the process that still runs a step's body gets it again, if nobody else did.
-- KEYS: 1 epoch, 2 run, 3 leases, 4 held
-- ARGV: 1 token, 2 step, 3 nonce, 4 lease ms, 5 tenant/run/step
-- Returns: OK fence | FENCED state | GONE | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local was, at = redis.call('HGET', KEYS[2], 's:' .. ARGV[2]), clock()
if not was then return {'GONE'} end
local mine = '.' .. ARGV[3]
if string.sub(was, 1, 8) == 'RUNNING|' and string.sub(was, -#mine) == mine then return {'OK', string.sub(was, 9)} end
if string.sub(was, 1, 6) ~= 'READY|' or redis.call('ZREM', KEYS[4], ARGV[5]) == 0 then return {'FENCED', was} end
local fence = string.sub(was, 7) .. '.' .. ARGV[3]
redis.call('HSET', KEYS[2], 's:' .. ARGV[2], 'RUNNING|' .. fence)
redis.call('ZADD', KEYS[3], at + ARGV[4], ARGV[5] .. '/' .. fence)
return {'OK', fence}
