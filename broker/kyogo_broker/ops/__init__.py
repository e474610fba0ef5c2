"""What operators see: logs, metrics, the HTTP port, the process. Reads snapshots, changes nothing."""
