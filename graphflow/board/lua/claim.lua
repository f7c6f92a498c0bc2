-- claim: give a READY step to one worker, with all it needs to run. Asked again by the same worker it answers the same.
-- KEYS: 1 epoch, 2 run, 3 leases, 4 rung, 5 feed
-- ARGV: 1 token, 2 epoch number, 3 step, 4 ring, 5 nonce, 6 lease ms, 7 tenant/run/step, 8 worker
-- Returns: OK fence at attempt deliveries meta input records references output... | DUPLICATE state | STOPPED | GONE | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local step, ring, at = ARGV[3], ARGV[4], clock()
local v = redis.call('HMGET', KEYS[2], 's:' .. step, '@state', '@stop', 'a:' .. step, 'd:' .. step, '@meta', '@input',
  'x:' .. step, 'r:' .. step)
redis.call('ZREM', KEYS[4], ARGV[7] .. '/' .. ring)
if not v[2] then return {'GONE'} end
local fence = ring .. '.' .. ARGV[5]
local again = v[1] == 'RUNNING|' .. fence
if v[1] ~= 'READY|' .. ring and not again then return {'DUPLICATE', v[1] or ''} end
if v[2] ~= 'RUNNING' or v[3] then return {'STOPPED'} end
if not again then
  redis.call('HSET', KEYS[2], 's:' .. step, 'RUNNING|' .. fence)
  redis.call('HDEL', KEYS[2], 'u:' .. step)
  tell(KEYS[2], KEYS[5], nil, ARGV[2], '', '', 'step.running', step, at, ARGV[8])
end
redis.call('ZADD', KEYS[3], at + ARGV[6], ARGV[7] .. '/' .. fence)
local answer = {'OK', fence, number(at), v[4] or '1', v[5] or '0', v[6], v[7], v[8] or '', v[9] or ''}
for name in string.gmatch(v[9] or '', '%S+') do
  answer[#answer + 1] = redis.call('HGET', KEYS[2], 'o:' .. name) or ''
end
return answer
