-- begin: the checkpoint, and beside it the rows of a list that follow a place in it
SELECT c.position, c.failure, page.* FROM checkpoints AS c LEFT JOIN (

-- newest_first: the order of the list
ORDER BY place DESC LIMIT %(limit)s

-- oldest_first: the order of the list
ORDER BY place LIMIT %(limit)s

-- end: of what `begin` began
) AS page ON true
WHERE c.name = 'read_models'
