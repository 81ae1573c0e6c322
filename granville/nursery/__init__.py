"""The Trio tree: tasks that move things between the pure core, sockets and threads. `kernel` shows the whole."""
