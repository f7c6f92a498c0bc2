-- publish: a rebuilt board becomes the board, unless it was wiped while it was made, or another one was begun after it.
-- KEYS: 1 epoch, 2 rebuilding
-- ARGV: 1 token, 2 epoch number
-- Returns: OK | LOST what is being rebuilt or ''
if redis.call('GET', KEYS[1]) == ARGV[1] then return {'OK'} end
local mark = redis.call('GET', KEYS[2])
if mark ~= ARGV[2] then return {'LOST', mark or ''} end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
return {'OK'}
