-- Settle one batch. Amounts in the unit of the account (tokens, requests, nano-USD), times in epoch
-- seconds, all integers.
--
-- KEYS[i]   the account, a hash: used = what was debited; s:<writer> = last sequence settled there
-- ARGV[1]   the writer (worker and boot)
-- ARGV[2]   the batch's sequence: a line is applied if it is above the one kept for the writer
-- ARGV[1+2i], ARGV[2+2i]   amount and expiry of KEYS[i]
--
-- Returns `used` of each account as strings: a number above 2^53 would lose digits in Lua.
local field = 's:' .. ARGV[1]
local sequence = tonumber(ARGV[2])
local used = {}
for i, key in ipairs(KEYS) do
  local amount = ARGV[1 + 2 * i]
  if amount ~= '0' and (tonumber(redis.call('HGET', key, field)) or 0) < sequence then
    redis.call('HSET', key, field, ARGV[2])
    if redis.call('HINCRBY', key, 'used', amount) < 0 then
      redis.call('HSET', key, 'used', '0')
    end
    redis.call('EXPIREAT', key, ARGV[2 + 2 * i])
  end
  used[i] = redis.call('HGET', key, 'used') or '0'
end
return used
