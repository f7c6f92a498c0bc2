-- begin: a new board is being made. Whatever older board there is serves no longer, and an older rebuild cannot publish.
-- KEYS: 1 epoch, 2 rebuilding
-- ARGV: 1 token, 2 epoch number
-- Returns: OK | OLD token or number
local was, other = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if was and tonumber(string.match(was, '^%d+')) >= tonumber(ARGV[2]) then return {'OLD', was} end
if other and tonumber(other) > tonumber(ARGV[2]) then return {'OLD', other} end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[2])
return {'OK'}
