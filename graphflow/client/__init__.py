"""What other systems import: start runs, follow them, signal, cancel, wait for results. Needs Redis only.

client = Client.from_env()
run = client.start("refund", {"invoice_id": "F-17"}, key="refund:F-17")
for event in run.events():
    print(event)
print(run.result(timeout="10m"))
"""

from convergio.graphflow.client.client import Client
from convergio.graphflow.client.event import Event
from convergio.graphflow.client.run import Run

__all__ = ["Client", "Event", "Run"]
