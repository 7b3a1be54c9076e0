-- Settle one batch. Amounts in the unit of the account (tokens, requests, nano-USD), times in epoch
-- seconds, all integers.
--
-- KEYS[i]   the account, a hash: used = what was debited; s:<writer> = last sequence settled there
-- ARGV[1]   the writer (worker and boot)
-- ARGV[2]   the batch's sequence: a line is applied if it is above the one kept for the writer
-- ARGV[1+2i], ARGV[2+2i]   amount and expiry of KEYS[i]
--
-- Returns `used` of each account as strings: a number above 2^53 would lose digits in Lua; `error`
-- for a key that is no such hash or a sum that overflows: that line alone is not applied.
local field = 's:' .. ARGV[1]
local sequence = tonumber(ARGV[2])
local used = {}

local function failed(answer)
  return type(answer) == 'table' and answer.err
end

local function apply(key, amount, expires_at)
  local last = redis.pcall('HGET', key, field)
  if failed(last) then return false end
  if (tonumber(last) or 0) >= sequence then return true end
  local total = redis.pcall('HINCRBY', key, 'used', amount)
  if failed(total) then return false end
  if total < 0 then redis.call('HSET', key, 'used', '0') end
  redis.call('HSET', key, field, ARGV[2])
  redis.call('EXPIREAT', key, expires_at)
  return true
end

for i, key in ipairs(KEYS) do
  local amount = ARGV[1 + 2 * i]
  local sound = amount == '0' or apply(key, amount, ARGV[2 + 2 * i])
  local value = redis.pcall('HGET', key, 'used')
  if not sound or failed(value) then
    used[i] = 'error'
  else
    used[i] = value or '0'
  end
end
return used
