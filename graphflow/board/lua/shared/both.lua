-- Put behind two scripts, which are functions here: the second is called if the first did what it was asked.
-- KEYS: those of the first, then those of the second
-- ARGV: 1 token, 2 number of keys of the first, 3 number of its arguments behind the token, those, then the second's
-- Returns: what the first returns, what the second returns | what the first returns | REBUILD
local keys, last = tonumber(ARGV[2]), 3 + ARGV[3]
local one = first({unpack(KEYS, 1, keys)}, {ARGV[1], unpack(ARGV, 4, last)})
if one[1] == 'REBUILD' then return REBUILD end
if string.find(' FENCED GONE EXISTS LATE NOPLAN ', ' ' .. one[1] .. ' ', 1, true) then return {one} end
return {one, second({unpack(KEYS, keys + 1, #KEYS)}, {ARGV[1], unpack(ARGV, last + 1, #ARGV)})}
