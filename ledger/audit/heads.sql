-- heads: every tree head, in the order of sizes
SELECT number, tree_size, root_hash, note FROM tree_heads ORDER BY tree_size, number

-- breaks: every break, in order
SELECT number, note FROM tree_breaks ORDER BY number
