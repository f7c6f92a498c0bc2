-- speak: tell a run's readers what a step does while it lasts; nothing of it goes to SQL.
-- The first words of another claim than the one that spoke before say that it began anew: readers drop what they had.
-- What was told of the step long ago is trimmed some time: before that, who speaks has to say it again.
-- KEYS: 1 epoch, 2 run, 3 feed
-- ARGV: 1 token, 2 epoch number, 3 step, 4 fence, 5 number of this batch, 6 data of a new beginning,
--       7 the run's number up to which all was told that must be known, or '', 8.. type, data
-- Returns: OK last number | STALE | FENCED state | GONE | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local v = redis.call('HMGET', KEYS[2], 's:' .. ARGV[3], 'v:' .. ARGV[3], '@seq')
if not v[1] then return {'GONE'} end
if v[1] ~= 'RUNNING|' .. ARGV[4] then return {'FENCED', v[1]} end
local spoke, batch = string.match(v[2] or '', '^(.*)|(%d+)$')
if spoke == ARGV[4] and tonumber(batch) >= tonumber(ARGV[5]) then return {'OK', v[3]} end
if ARGV[7] ~= '' and tonumber(v[3]) > tonumber(ARGV[7]) then return {'STALE'} end
local at = clock()
redis.call('HSET', KEYS[2], 'v:' .. ARGV[3], ARGV[4] .. '|' .. ARGV[5], '@spoke', '1')
if spoke and spoke ~= ARGV[4] then
  tell(KEYS[2], KEYS[3], nil, ARGV[2], '', '', 'CUSTOM', ARGV[3], at, ARGV[6])
end
for i = 8, #ARGV, 2 do
  tell(KEYS[2], KEYS[3], nil, ARGV[2], '', '', ARGV[i], ARGV[3], at, ARGV[i + 1])
end
return {'OK', redis.call('HGET', KEYS[2], '@seq')}
