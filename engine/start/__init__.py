"""The start-up module: joins the parts. It alone may name concrete adapters.

`python -m engine.start --config FILE --data DIR` is the engine process, a child
of the supervisor, which hands it the listening sockets. The test phone and the
demo build their phones here, too.
"""
