"""Control views: see `pikv_runtime.control_views`."""
