-- Put before the scripts that claim. Gives a READY step to one worker, with all it needs to run.
-- Asked again by the same worker it answers the same.
-- Returns: OK fence at attempt deliveries meta input records references output... | DUPLICATE state | STOPPED | GONE
local function grant(run, leases, rung, feed, epoch, ref, step, ring, nonce, ms, worker)
  local at, member = clock(), ref .. '/' .. step .. '/'
  local v = redis.call('HMGET', run, 's:' .. step, '@state', '@stop', 'a:' .. step, 'd:' .. step, '@meta', '@input',
    'x:' .. step, 'r:' .. step, 'u:' .. step, '@seq')
  redis.call('ZREM', rung, member .. ring)
  if not v[2] then return {'GONE'} end
  local fence = ring .. '.' .. nonce
  local again = v[1] == 'RUNNING|' .. fence
  if v[1] ~= 'READY|' .. ring and not again then return {'DUPLICATE', v[1] or ''} end
  local open = v[2] == 'RUNNING' or (v[2] == 'COMPENSATING' and string.sub(step, 1, 5) == 'undo:')
  if not open or v[3] then return {'STOPPED'} end
  if not again then
    local seq = (v[11] or 0) + 1
    redis.call('HSET', run, 's:' .. step, 'RUNNING|' .. fence, '@seq', seq)
    if v[10] then redis.call('HDEL', run, 'u:' .. step) end
    say(seq, feed, nil, epoch, '', '', 'step.running', step, at, worker)
  end
  redis.call('ZADD', leases, at + ms, member .. fence)
  local answer = {'OK', fence, number(at), v[4] or '1', v[5] or '0', v[6], v[7], v[8] or '', v[9] or ''}
  for name in string.gmatch(v[9] or '', '%S+') do
    answer[#answer + 1] = redis.call('HGET', run, 'o:' .. name) or ''
  end
  return answer
end
