"""The demo: a generated shop of sound postcards walks through every room, and the result is shown.

`catalogue` and `truth` make the data, `run` walks them through the project's own commands, `judge` measures, and `table`
and `report` show. Nothing here is needed by any other room.
"""
