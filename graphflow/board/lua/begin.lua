-- begin: a new board is being made. Whatever older board there is serves no longer, and an older rebuild cannot publish.
-- KEYS: 1 epoch, 2 rebuilding, 3 owner
-- ARGV: 1 token, 2 epoch number, 3 journal or '', 4 1 = whosever it was
-- Returns: OK | OLD token or number | OTHER journal
local was, other, owner = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3])
if owner and ARGV[3] ~= '' and owner ~= ARGV[3] and ARGV[4] ~= '1' then return {'OTHER', owner} end
if was and tonumber(string.match(was, '^%d+')) >= tonumber(ARGV[2]) then return {'OLD', was} end
if other and tonumber(other) > tonumber(ARGV[2]) then return {'OLD', other} end
if ARGV[3] ~= '' then redis.call('SET', KEYS[3], ARGV[3]) end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[2])
return {'OK'}
