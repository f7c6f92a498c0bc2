-- beat: prolong the leases of one process, and tell it which of them are no longer its own.
-- KEYS: 1 epoch, 2 leases, 3 released
-- ARGV: 1 token, 2 lease ms, 3.. tenant/run/step/fence
-- Returns: OK at released lost... | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local at = clock()
local answer = {'OK', number(at), redis.call('GET', KEYS[3]) or '-1'}
for i = 3, #ARGV do
  if redis.call('ZSCORE', KEYS[2], ARGV[i]) then
    redis.call('ZADD', KEYS[2], 'XX', at + ARGV[2], ARGV[i])
  else
    answer[#answer + 1] = ARGV[i]
  end
end
return answer
