"""The load test's errors: each says why nothing could be measured; a command exits with status 2.

LoadTestError
├── ScenarioError, TraceError, PayloadError, ServiceNotReadyError
├── PeersError, PeerError, WrkError
├── GateError, TreeError
└── PointsError, SimulationError, ClientError, ProxyError
"""


class LoadTestError(RuntimeError):
    """A measurement is impossible; the message says what came, what was expected, what to do."""
