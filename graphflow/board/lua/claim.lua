-- claim: give a READY step to one worker, with all it needs to run.
-- KEYS: 1 epoch, 2 run, 3 leases, 4 rung, 5 feed
-- ARGV: 1 token, 2 epoch number, 3 step, 4 ring, 5 nonce, 6 lease ms, 7 tenant/run, 8 worker
-- Returns: what `grant` returns | REBUILD
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end
return grant(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[2], ARGV[7], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[8])
