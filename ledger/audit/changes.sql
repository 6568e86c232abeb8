-- tiles: the stored hashes of leaves, 256 to a row
SELECT index, hashes FROM tree_tiles
WHERE level = 0 AND index BETWEEN %(first)s AND %(last)s AND hashes IS NOT NULL
ORDER BY index

-- leaves: the events after one position up to another
SELECT position, stream, version, topic, recorded_at, state FROM events
WHERE position > %(after)s AND position <= %(last)s
ORDER BY position
