-- newest_head: up to which a bundle goes, unless it is told
SELECT number, tree_size, signed_at FROM tree_heads ORDER BY number DESC LIMIT 1

-- head_of_size: the last one of just this size
SELECT number, tree_size, signed_at FROM tree_heads WHERE tree_size = %(tree_size)s ORDER BY number DESC LIMIT 1

-- heads: all up to one, in the order in which they were signed
SELECT tree_size, signed_at, note FROM tree_heads WHERE number <= %(number)s ORDER BY number

-- breaks: all of them, in the order in which they were recorded
SELECT recorded_at, note FROM tree_breaks ORDER BY number

-- keys: the public keys that heads up to one were signed with, in the order in which they were introduced
SELECT public_key FROM tree_keys WHERE first_head <= %(number)s ORDER BY number

-- events: the log up to a position
SELECT position, stream, version, topic, recorded_at, state FROM events WHERE position <= %(tree_size)s ORDER BY position
