-- set_timeout: how long statements of this connection may take from now on
SELECT set_config('statement_timeout', %(timeout)s, false)
