"""The load test's errors: whatever cannot be measured says why, and ends a command with status 2.

LoadTestError
├── ScenarioError, TraceError, PayloadError, ServiceNotReadyError
├── PeersError, PeerError, WrkError
├── GateError, TreeError
└── PointsError, SimulationError, ClientError, ProxyError
"""


class LoadTestError(RuntimeError):
    """A measurement cannot be made; says what came, what was expected and what to do."""
