"""The local HTTP interface: OpenAI-compatible answers, the node's own API, metrics and the page.

`app.make_app` builds the application over a `NodeApi`; `server.serve_gateway` puts it on a socket. What each
route takes and returns is in docs/protocol/gateway.md.
"""
