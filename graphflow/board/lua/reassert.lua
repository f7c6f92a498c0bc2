-- reassert: after a rebuild, the process that still runs a step's body gets it again, if nobody else did. A step with a
-- concurrency key holds that again: before the first grant of the new board nobody else does.
-- KEYS: 1 epoch, 2 run, 3 leases, 4 held, with a concurrency key also, 5 holders, 6 waiters
-- ARGV: 1 token, 2 step, 3 nonce, 4 lease ms, 5 tenant/run/step, 6 limit or ''
-- Returns: OK fence | FENCED state | GONE | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local was, at = redis.call('HGET', KEYS[2], 's:' .. ARGV[2]), clock()
if not was then return {'GONE'} end
local mine, ring = '.' .. ARGV[3], string.match(was, '^READY|(.*)$')
if string.sub(was, 1, 8) == 'RUNNING|' and string.sub(was, -#mine) == mine then return {'OK', string.sub(was, 9)} end
if KEYS[5] then
  local closed = tonumber(redis.call('ZSCORE', KEYS[6], '@') or 0)
  ring = at < -closed and string.match(was, '^BLOCKED|LIMIT|%d+|(.*)$')
end
if not ring or redis.call('ZREM', KEYS[4], ARGV[5]) == 0 then return {'FENCED', was} end
if KEYS[5] then
  redis.call('ZREM', KEYS[6], ARGV[5] .. '/' .. ARGV[6])
  redis.call('ZADD', KEYS[5], at, ARGV[5])
end
local fence = ring .. mine
redis.call('HSET', KEYS[2], 's:' .. ARGV[2], 'RUNNING|' .. fence)
redis.call('ZADD', KEYS[3], at + ARGV[4], ARGV[5] .. '/' .. fence)
return {'OK', fence}
