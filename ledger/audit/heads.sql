-- heads: every tree head, in the order of sizes
SELECT number, tree_size, root_hash, note FROM tree_heads ORDER BY tree_size, number

-- keys: the public keys, in the order in which they were introduced
SELECT number, public_key FROM tree_keys ORDER BY number

-- breaks: every break, in order
SELECT number, note FROM tree_breaks ORDER BY number
