-- publish: a rebuilt board becomes the board, unless a later one is there already. The only script without the epoch test.
-- KEYS: 1 epoch
-- ARGV: 1 token, 2 epoch number
-- Returns: OK | OLD token
local was = redis.call('GET', KEYS[1])
if was and was ~= ARGV[1] and tonumber(string.match(was, '^%d+')) >= tonumber(ARGV[2]) then return {'OLD', was} end
redis.call('SET', KEYS[1], ARGV[1])
return {'OK'}
