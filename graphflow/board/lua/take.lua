-- take: pop the next doorbell and claim its step. A message that is no doorbell is popped and not claimed.
-- Nothing is taken while a message waits that only a pop can fetch. Which step it is, only the message says: its keys
-- cannot be named by the caller, and where they are no run's (anybody may push here), nothing is claimed.
-- KEYS: 1 epoch, 2 leases, 3.. lists that only a pop can fetch from, then the queue lists, the one to look at first first
-- ARGV: 1 token, 2 epoch number, 3 prefix of the board's keys, 4 nonce, 5 lease ms, 6 worker, 7 number of the former lists
-- Returns: NONE | TAKEN list message [tenant run step ring claim (see grant)] | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
local first = 3 + ARGV[7]
if first > 3 and redis.call('EXISTS', unpack(KEYS, 3, first - 1)) > 0 then return {'NONE'} end
local lists = {unpack(KEYS, first, #KEYS)}
lists[#lists + 1] = 'RIGHT'
local popped = redis.call('LMPOP', #lists - 1, unpack(lists))
if not popped then return {'NONE'} end
local list, message, prefix = popped[1], popped[2][1], ARGV[3]
local function after(words, pattern) -- plain words are found much faster than a pattern
  local _, last = string.find(message, words, 1, true)
  if last then return string.match(message, pattern, last + 1) end
end
local run, step, ring = after('"id":"', '^([^".\\]+)%.([^".\\]+)%.(%d+%.%d+)"')
local tenant = after('"tenant":"', '^([^"\\]+)"')
if not (run and tenant) then return {'TAKEN', list, message} end
local key = prefix .. tenant .. ':' .. run
step = string.gsub(step, '~', '#') .. '' -- an instance, as ids write it
local is_run, claim = pcall(grant, key, KEYS[2], prefix .. 'rung:' .. list, key .. ':feed', ARGV[2],
  tenant .. '/' .. run, step, ring, ARGV[4], ARGV[5], ARGV[6])
if not is_run then return {'TAKEN', list, message} end
return {'TAKEN', list, message, tenant, run, step, ring, claim}
