"""Every limit, with its unit, wing by wing, and the relations between them."""

from select import PIPE_BUF

# The protocol.

LINE_BYTES = 10
"""Nine characters and a newline: a number's line and `terminate` alike."""

TAIL_BYTES_MAX = LINE_BYTES - 1
"""The most that is carried from one receive to the next: an incomplete line."""

NUMBERS = 1_000_000_000
"""All numbers of nine digits."""

BITMAP_BYTES = NUMBERS // 8
"""One bit for each of them."""

# ingest/

HEADROOM_BYTES = 16
"""Free bytes in front of each received piece, where the connection's tail is laid."""

RECEIVE_BYTES = 1024 * 1024
"""The most that one receive takes; a compiled kernel is through with it in two milliseconds."""

RECEIVE_BYTES_PYTHON = 64 * 1024
"""The same for the kernel in Python, so that no client waits long while it takes in a flood."""

CHUNK_BYTES_MAX = TAIL_BYTES_MAX + RECEIVE_BYTES
"""The most that a kernel is given at once, and so the most that one call adds to the batch."""

TAKE_BYTES_MAX = 32 * 1024 * 1024
"""What a compiled pass takes in, the last piece aside, before Python sees whether to stop."""

COMPLETE_MIN = 256
"""Where clients may not be idle for ever: pieces that a compiled call takes in before it returns to
say whose they were; with more clients, as many as there are."""

GATHER_BYTES = 4096
"""Lines of small pieces that a kernel takes in at once, few enough for the first-level cache."""

GATHER_PIECE_BYTES = 1024
"""A piece, with the tail in front of it, that counts as small. In larger ones a kernel's window has
enough lines."""

BULK_BYTES = 64 * 1024
"""A client whose last receive brought so much sends in bulk, until one brings less."""

BULK_SHARE_BYTES = 16 * 1024
"""What a pass receives in bulk, times the clients that are ready for it, where RECEIVE_BYTES are
less: each pass looks at all of those again."""

BULK_PASS_BYTES = 1024 * 1024
"""A compiled pass that takes so much in has another one behind it, within the same call: Python's
part of a pass takes a tenth of a millisecond, because bulk drives it out of the caches."""

BATCH_BYTES = 2304 * 1024
"""Lines that wait for the log: appended before each wait, and when a piece might not fit."""

# net/

BACKLOG_CONNECTIONS = 4096
"""Asked of listen(2); the kernel lowers it to net.core.somaxconn."""

KEEPALIVE_IDLE_S = 60
"""Silence of a connection before its peer is probed."""

KEEPALIVE_INTERVAL_S = 10
"""From one probe to the next."""

KEEPALIVE_PROBES = 3
"""A vanished host's slot is free after 60 + 3 * 10 seconds."""

DIRECTORY_LOCK_TRIES = 50
"""How often a start tries to lock the directory of a unix socket."""

DIRECTORY_LOCK_RETRY_S = 0.02
"""The pause between two of these tries."""

# system/

DESCRIPTORS_RESERVED = 48
"""Descriptors beside the clients': standard streams, log, epoll, listeners, HTTP, Python's own."""

DESCRIPTORS_PER_REACTOR = 4
"""Of each further reactor: its epoll or ring and its wake-up descriptor, and some to spare."""

THREAD_START_BYTES = 4 * 1024 * 1024
"""What a thread may need, beside its stack, until it can say that memory is lacking."""

THREAD_HEAP_BYTES = 128 * 1024 * 1024
"""More than that on a free-threaded Python, whose threads have heaps in aligned segments."""

THREAD_START_POLL_S = 0.05
"""How often the start checks that a thread that is to begin still exists."""

STREAM_RETRY_S = 0.005
"""How often a line is tried to be written to a stream that is full, where it is worth a wait."""

STREAM_THREAD_WAIT_S = 0.05
"""How long a line waits for a file that it is written to, before its thread goes on alone."""

LAST_REPORT_WAIT_S = 0.2
"""How long the last report waits for a reader of standard output that is behind."""

DIAGNOSTIC_CHARACTERS_MAX = 900
"""Of one line on standard error: short enough, as UTF-8, for a pipe to take it whole."""

SIGNAL_REPEAT_S = 0.05
"""Signals this close together are one request: timeout(1) sends each of its signals twice."""

SIGNAL_THREAD_END_S = 0.5
"""How long the end of a run waits for the thread that takes signals."""

# systemd/

WATCHDOG_HEARTBEATS = 4
"""How often the loop tells the service manager that it lives, in the time that it is given."""

RESUME_EXTEND_S = 60.0
"""What a start asks the service manager for, each time that it says how far it is."""

SYNC_EXTEND_S = 300.0
"""What a reload and a stop ask the service manager for: they may have to wait for the disk."""

# reactor/

ACCEPTS_PER_PASS_MAX = 256
"""Connections accepted in one pass, so that a flood of them does not starve the accepted."""

PACING_PERIOD_S = 0.0008
"""From pass to pass, at least, while tiny packets come in a rush."""

PACING_PAUSE_S_MIN = 0.00002
"""A shorter pause than this is left out."""

PACING_CHUNK_BYTES = 1024
"""What a receive brings on average, below which packets count as tiny."""

PACING_INTERVAL_S = 0.0001
"""The time from event to event, below which packets come in a rush."""

PACING_SIGNS = 8
"""Passes in a row that have to look like it."""

PACING_PASSES = 64
"""Passes at that distance before the rate is checked again."""

ACCEPT_BACKOFF_S = 0.5
"""How long accepting pauses after a failed accept, most often for lack of descriptors."""

ACCEPT_FAILURES_MAX = 16
"""Connections in a row that may be gone before they are accepted, before that is a failure."""

EPOLL_CTL_TRIES = 3
"""Calls of epoll_ctl(2) that may fail in a row, until that is a failure."""

NEWCOMERS_MAX = 64
"""Clients accepted while all slots are taken, that are not refused yet."""

REFUSE_GRACE_S = 0.02
"""How long one of them waits for another reactor to notice that one of its clients has left."""

ACCEPT_WARNING_INTERVAL_S = 60.0
"""The least time between two warnings that connections can't be accepted."""

RING_SMALL_BUFFERS = 1024
"""Buffers of RING_SMALL_BYTES; a power of two, as Linux wants it."""

RING_SMALL_BYTES = 4 * 1024 - 64
"""What the ring receives packets into from clients that send little at a time."""

RING_LARGE_BUFFERS = 16
"""Buffers of RING_LARGE_BYTES; a power of two, as well."""

RING_LARGE_BYTES = RECEIVE_BYTES - 64
"""What the ring receives into from clients that fill small buffers, in turn."""

RING_TOUCHED_BYTES = RING_SMALL_BUFFERS * 4096 + 2 * RECEIVE_BYTES
"""What is touched at the start: the small buffers, and of the large ones those that are in use."""

RING_SUBMISSIONS_MAX = 1024
"""Entries of the submission queue."""

RING_QUEUED_MIN = 4096
"""Space for completions that were not read yet; it grows with the number of clients."""

RING_COMPLETIONS_MAX = 4096
"""The most that one pass of the ring hands out."""

RETRIES_AT_ONCE = 16
"""How often a wait that fails is tried without a pause: epoll_wait(2), or a pass of the ring."""

RETRY_S = 0.02
"""The pause before each further try."""

RETRY_MAX_S = 10.0
"""How long it is tried in all."""

RECEIVE_FAILURES_MAX = 16
"""Receives of a connection in a row that fail with an error that may pass, until it is ended."""

RING_PROBE_S = 1.0
"""How long the probe of a ring waits for what comes at once."""

RECEIVE_WARNING_INTERVAL_S = 60.0
"""The least time between two warnings that receives fail."""

DRAIN_S = 0.5
"""How long a stop goes on reading what it need not: bytes that arrive after it began."""

DRAIN_USED_S = 0.25
"""The least that a stop uses of it, in processor time and waits: on a host that is slow, stopped or
waits for its disk, the time alone would cut off what clients had written before the stop."""

DRAIN_QUIET_S = 0.05
"""Silence after which a client that was sending when the stop began counts as done."""

DRAIN_FULL_BYTES = 1024
"""The least that a socket holds whose window is closed: packets of 10 bytes fill it with that."""

DRAIN_PAUSE_S = 0.001
"""How long a stop waits for more before it reads all sockets again."""

DRAIN_BYTES_MAX = 32 * 1024 * 1024
"""The most that a stop takes from one connection beyond what its socket held at the start, and the
least from all, unless DRAIN_USED_S are over."""

# log/

WRITE_BEHIND_BYTES = 8 * 1024 * 1024
"""The log's window of write-back."""

WRITE_BEHIND_LAG_BYTES = 256 * 1024 * 1024
"""What stays in memory behind the writer, so that a burst is over before its write-back starts."""

SYNC_INTERVAL_S = 1.0
"""How often a log that grows is synced, where it is neither never nor always."""

LOG_NAME_CHECK_S = 1.0
"""How often it is checked whether a log that grows still has its name."""

LOG_RENAMED_S = 5.0
"""How long after a renaming SIGHUP may come before the server warns that it is needed."""

LOG_CHANGES_WARNING_S = 60.0
"""The least time between two warnings that another process appends to the log."""

LOG_TAIL_CHUNK_BYTES = 64 * 1024
"""What is read at once, backwards, to find the last newline of what another process appended."""

LOG_SCAN_CHUNK_BYTES = 256 * 1024
"""What one read of a scan takes: chunk and batch stay in the second-level cache."""

PROBE_CHUNK_BYTES = 1_000_000
"""What `doctor` reads of a log at either end, to see whether a start would take it."""

RESUME_PROGRESS_S = 2.0
"""How often a long start says how far it is."""

GZIP_READ_BYTES = 128 * 1024
"""What one read of a compressed log takes: a few chunks of lines."""

SEEN_THREADS_MAX = 8
"""How many compressed files of --seen are read at once, on as many processors."""

SEEN_POLL_S = 0.05
"""How often the main thread looks whether a stop is requested while others read."""

SEEN_LISTINGS_MAX = 100
"""How often the files of --seen are listed anew because a rotation renames them meanwhile."""

# metrics/

HTTP_CLIENTS_MIN = 8
"""Clients of the metrics port at once that there are descriptors for in any case."""

HTTP_CLIENTS_MAX = 512
"""The most of them, where there are descriptors enough; one more takes the oldest one's place. So
many that each has time to send its request also in a flood of connections."""

HTTP_CLIENT_S = 5.0
"""How long one of them may take to ask and to read the answer."""

HTTP_REQUEST_BYTES_MAX = 16 * 1024
"""Of a request with all its headers."""

HTTP_HEADERS_MAX = 100
"""Of one request."""

HTTP_RECEIVE_BYTES = 4096
"""The most that is received from one of them at once."""

HTTP_ACCEPTS_PER_PASS_MAX = 512
"""Connections accepted in one pass of the metrics thread; each takes some 12 us."""

HTTP_FAILED_ACCEPTS_MAX = 16
"""Accepts that fail in one pass before the thread pauses."""

HTTP_ANSWERS_PER_PASS_S = 0.002
"""Processor time of one pass after which different requests wait for the next pass."""

HTTP_SHARE = 0.1
"""The share of one processor that the metrics thread may use."""

HTTP_BURST_S = 0.1
"""The processor time that it may save for a burst."""

HTTP_PAUSE_S = 0.01
"""The shortest sleep after a pass: the interpreter is the reactor's meanwhile."""

HTTP_PAUSE_MAX_S = 0.25
"""The longest one."""

HTTP_RETRY_S = 0.1
"""The pause after a failed system call."""

HTTP_CLOSE_S = 0.75
"""How long a stop waits for the metrics thread."""

PAGE_REFRESH_S = 1.0
"""How often the page of the metrics port is asked for anew while it is looked at."""

PAGE_RELOAD_S = 3.0
"""How often a browser that runs no scripts loads it."""

PAGE_RATES_S_MAX = 5.0
"""Over which time it shows rates at most."""

# profiling/

PROFILE_HZ = 499
"""Samples a second of processor time with perf.

An odd rate keeps clear of what happens a hundred or a thousand times a second.
"""

PROFILE_PY_SPY_HZ = 100
"""Samples a second of any time with py-spy, which stops the server for each."""

PROFILE_STACK_BYTES = 16 * 1024
"""What perf copies of a stack where it has no frame pointers to follow; ours need some 12 KB."""

PROFILE_BYTES_MAX = 1024 * 1024 * 1024
"""A recording ends there: more than an hour of a busy server, or two minutes uncompressed."""

PROFILE_START_S = 10.0
"""How long a start waits until the recording runs."""

PROFILE_POLL_S = 0.01
"""How often it looks whether it does."""

PROFILE_STOP_S = 10.0
"""How long a stop waits for the recorder to end."""

PROFILE_READ_S = 60.0
"""How long a stopped server reads its recording; the picture shows what was read by then."""

# load/

LOAD_CLIENTS_MAX = 10_000
"""Connections of one load generator."""

LOAD_SEND_BYTES = 64 * 1024
"""What one send(2) is given, unless told otherwise."""

LOAD_SEND_BYTES_MAX = 4 * 1024 * 1024
"""The most that --send-bytes takes."""

LOAD_NUMBERS_MAX = 2**53
"""Beyond this a float cannot represent every count."""

LOAD_PREPARE_BYTES = 1024 * 1024 * 1024
"""Lines made before the clock starts, if all fit; 107 million numbers."""

LOAD_PREPARE_BYTES_MAX = 2**62
"""The most that --prepare takes: C counts bytes in 64 bits, with a sign."""

LOAD_SEED_MAX = 2**64 - 1
"""A seed has 64 bits."""

LOAD_RATE_MAX = 10**12
"""Numbers a second."""

LOAD_PREPARE_STEP_NUMBERS = 4_000_000
"""Numbers prepared between two checks for signals and two updates of the progress."""

LOAD_ARENA_BYTES = 32 * 1024 * 1024
"""Lines made on the fly, of all clients together; more only where one send needs it."""

LOAD_CHUNK_BYTES = 64 * 1024
"""The most that is made ahead for a client whose sends are smaller."""

LOAD_SLICE_S = 0.1
"""How long signals and progress wait while C runs."""

LOAD_RATE_WINDOW_S = 1.0
"""The progress bar shows the rate of this time."""

LOAD_PLOT_SLICE_S = 0.05
"""How often a plot takes a sample of the numbers sent."""

LOAD_PLOT_INTERVAL_S_MIN = LOAD_PLOT_SLICE_S / 5
"""A shorter interval is part of its neighbour: its rate would be chance."""

LOAD_CONNECT_WAIT_S = 1.0
"""How long the clock waits for all clients to be connected: a full backlog may keep some out."""

# cluster/

NANOSECONDS_PER_S = 1_000_000_000
"""What a NATS server counts times in, and we in seconds."""

PARTITIONS_MAX = 1024
"""Of one cluster: ranges of numbers, each with a stream and a log of its own."""

COPIES_MAX = 100
"""Of each partition."""

STREAM_NUMBERS_TIMES = 4
"""A stream has room for each number of its partition so often, unless asked for otherwise."""

STREAM_REQUESTS_MAX = 64
"""Streams that are asked for at once, or keys of a bucket that are written at once."""

CANCEL_AGAIN_S = 0.1
"""How long a task has to end after it was cancelled, before it is cancelled again."""

COPY_BEHIND_S = 30.0
"""A copy that lacks a message which is older than this is behind."""

MESSAGE_TIMES_MAX = 64
"""Messages that `cluster status` asks for to know how long copies have been without them."""

STREAM_FULL_SHARE = 0.8
"""From this share of its limit on the fill of a stream is a problem."""

STATUS_ANSWER_S = 3.0
"""How long `cluster status` waits for what it then shows as silent."""

PROBLEMS_SHOWN_MAX = 10
"""Lines of one kind of problem; there may be thousands of partitions and copies."""

REPLICA_SILENT_S = 4.0
"""A replica that its leader has not heard of for this long counts as away."""

REPLICAS_POLL_S = 0.5
"""How often new replicas are asked for whether they have everything."""

REPLICAS_PROGRESS_S = 5.0
"""The pause between two lines about new replicas that do not have everything yet."""

REPLICAS_STUCK_S = 60.0
"""New replicas that take in nothing for this long are an error."""

MESSAGE_BYTES_MAX = 1024 * 1024
"""The longest message that a collector takes, and that a stream is made for, headers included."""

DUPLICATE_WINDOW_S = 120.0
"""How long a stream knows the ids of messages, so that one sent again is stored once."""

BUCKET_KEYS_MAX = 1000
"""Keys whose values are asked for at once: nats-server answers up to 1,024."""

BUCKET_VALUES_AT_ONCE = 50
"""Values that are read, in some milliseconds, before whatever else is due gets its turn."""

BUCKET_TEXT_CHARACTERS_MAX = 1000
"""The most that is shown of a text that was written by another process."""

NODE_GONE_S = 10.0
"""A node that has not reported for this long counts as gone."""

NODES_KEEP_S = 3600.0
"""How long the last report of a node is kept."""

NODES_BYTES_MAX = 16 << 20
"""The limit of the bucket of these reports, which have some hundred bytes each."""

BROKER_START_S = 5.0
"""How long a command tries to reach the NATS server of a cluster before it gives up; each further
server adds BROKER_CONNECT_S, so that all are tried."""

BROKER_CONNECT_S = 3.0
"""How long a NATS server may take to accept a connection, and then to welcome the client."""

BROKER_RECONNECT_S = 1
"""The pause between two tries to reach the same NATS server after its connection was lost."""

BROKER_PING_S = 3.0
"""How often a NATS server is sent a ping."""

BROKER_SILENT_PINGS = 2
"""So many pings without a byte in between are the end of a connection: 6 to 9 s of silence."""

BROKER_UNSENT_S = 9.0
"""How long Linux keeps a connection whose peer takes no data."""

BROKER_LEAVE_S = 5.0
"""How long a NATS server, one of several, may answer no question, or confirm no change, while it
answers pings: it may be cut off from the others."""

BROKER_LOOK_S = 0.5
"""How often it is checked whether a NATS server is to be left."""

BROKER_ASK_AGAIN_S = 2.0
"""How long an answer is waited for before the question is asked again, beside the first."""

BROKER_LEADER_S = 10.0
"""How long JetStream may say that it has no leader."""

BROKER_NO_LEADER_RETRY_S = 0.25
"""The pause before it is asked again then."""

BROKER_PENDING_BYTES_MAX = 64 * 1024 * 1024
"""What a client has space for that is not written yet: all batches of a node, several times."""

BROKER_PENDING_FLUSHES_MAX = 64 * 1024
"""Writes that wait for the connection; a caller that waits for space here can't be cancelled."""

BROKER_CLOSE_S = 2.0
"""How long a connection that is to be closed waits for a NATS server that takes no data."""

BROKER_REFUSALS_MAX = 3
"""So often in a row each of the NATS servers may refuse to have a lost connection back, until
it is gone for good: that one of three has learned of a new password first is no reason."""

BROKER_POLL_S = 0.25
"""How often the state of the connection is checked."""

BROKER_REQUEST_S = 20.0
"""How long an answer may take: a silent server is left after 9 s, and a group of three needs 5-9 s
to choose a new leader."""

BROKER_REQUEST_TRIES = 3
"""How often a request that any replica may answer is sent, and a change that may be refused."""

# cluster/node/

FORWARD_BATCH_BYTES = 256 * 1024
"""The most that one message to the NATS server holds: 64 Ki numbers of four bytes."""

FORWARD_HEADER_BYTES_MAX = 1024
"""The most that the headers of one such message take."""

FORWARD_AREAS_BYTES = 64 * 1024 * 1024
"""What is packed for all partitions together; many of them have batches that are smaller."""

FORWARD_LINGER_S = 0.003
"""How long a number waits for others of its partition, where it is not a full batch before."""

FORWARD_IN_FLIGHT = 32
"""Batches that are published and not acknowledged, at most."""

FORWARD_BATCHES_MAX = 64
"""Batches that are in flight, or wait to be, at most."""

FORWARD_RESEND_S = 3.0
"""How long an acknowledgement is waited for, since the last one of a batch that was published
before, until the batch is published again."""

FORWARD_RETRY_S = 0.25
"""The pause before a batch that was refused is published again."""

FORWARD_LOOK_S = 20.0
"""How often a node looks whether the streams have what they have acknowledged; it also does when
the connection is made again."""

FORWARD_LOOK_AGAIN_S = 1.0
"""When it looks again if it got no answer, or there was no stream."""

FORWARD_LOST_LOOKS = 4
FORWARD_LOST_PAUSE_S = 4.0
"""So many looks, with this pause, at a stream with replicas that seems to have lost messages: it
may be that another leader, or the same, knows better."""

FORWARD_ROOM_S = 1.0
"""How long clients' lines wait for free bytes in a window that does not move."""

FORWARD_ROOM_ALL_S = 4.0
"""How long they wait where it moves."""

FORWARD_STOP_ACK_S = 30.0
"""How long a stop waits for the next acknowledgement."""

FORWARD_CLOSE_S = 2.0
"""How long the end waits for the connection to be closed orderly."""

NODE_STATUS_INTERVAL_S = 2.0
"""How often a node tells the cluster of itself."""

# cluster/collector/

COLLECTOR_THREADS_MAX = 32
"""Partitions of one collector that are taken in or synced at the same moment."""

COLLECTOR_BATCH_BYTES = 12 * 1024 * 1024
"""Lines of one partition that wait for its log: all of a read of common size."""

COLLECTOR_WRITE_BYTES = 2 * 1024 * 1024
"""With so many of them they are written: each write costs a look at the log beside it."""

VERIFY_INDEX_RETRIES = 2
"""How often an index that ends within a record is read again."""

VERIFY_INDEX_RETRY_S = 0.1
"""The time between that: a collector appends whole records."""

VERIFY_LINES_MAX = 100_000
"""Lines that should not be in a log, until it is taken for something else, and not read on."""

COMMIT_INTERVAL_S = 0.02
"""How often a busy partition's log is synced, and its index has another record, at most."""

INDEX_SYNC_INTERVAL_S = 1.0
"""How often a busy partition's index is synced, at most: less often than its records are told."""

INDEX_RECORDS_KEPT = 1024
"""The newest records of an index, which all stay when it is thinned."""

INDEX_RECORDS_MAX = 4096
"""How many an index has before it is thinned in the middle of a run, too."""

INDEX_LOG_BYTES_PER_RECORD = 16 * 1024 * 1024
"""Bytes of the log for each of which an older record stays."""

READ_AHEAD_BYTES = 8 * 1024 * 1024
"""Messages of one partition that a collector asks for, and has, before it takes them in."""

HEAP_KEPT_BYTES = 4 * READ_AHEAD_BYTES
"""Freed memory that a collector's C library keeps, for the next messages."""

READ_AHEAD_MESSAGES = 8192
"""The same, where they are small."""

READ_BYTES = 4 * 1024 * 1024
"""What a collector takes in with one sync, if messages have common sizes."""

READ_MESSAGES = 4096
"""The same, where they are small."""

READ_WAIT_S = 2.0
"""How long a read waits for a message, before it returns none."""

READ_HEARTBEAT_S = 2.0
"""How often the NATS server tells that it has nothing to send."""

READ_SILENT_S = 5.0
"""After this time without a message or a heartbeat a consumer is gone: another one is made."""

READ_ANSWER_S = 2.0
"""How long an answer may take: what a group without a leader is asked is lost."""

READ_RETRY_S = 0.5
"""How often a reader without a consumer tries to make one."""

READ_EXPIRES_S = 30.0
"""How long a request for messages is open."""

READ_CONSUMER_S = 60.0
"""How long the NATS server keeps a consumer that no one asks for messages."""

READ_IDLE_S = 2.0
"""How long nothing comes before the stream is asked whether there is something; and how often a
stream that lost messages of the log is asked again."""

READ_BACK_ASKS = 3
"""How often in a row a stream has to end before the position, until it was put back: a new leader
may have to find its last messages first."""

READ_IDLE_S_MAX = 16.0
"""The same, where there was nothing several times: each time it is twice as long as before."""

READ_OPENS_MAX = 32
"""Consumers of one process that are made at once: of a group, each one needs several servers."""

LOOKUP_ASKS = 12
"""How often any replica is asked for a missing message: each of three is, but for one time in a
hundred."""

LOOKUP_FAILURES_MAX = 3
"""How often there may be no answer, until the leader is asked instead."""

LOOKUP_PAUSE_S = 0.1
"""The pause between two of these."""

LOOKUP_TIME_ASKS = 6
"""How often the first message since a time is asked for, and the first of the answers taken."""

LOOKUP_MESSAGES = 256
"""What one of them asks for, where more are missing."""

LOOKUP_RETRY_S = 5.0
"""How often a partition that waits for a missing message looks for it again."""

COPY_TELL_S = 4.0
"""How often a collector reports the positions of its copies."""

COPY_UNCHANGED_TELLS = 3
"""Of so many reports that would be the same one is sent."""

COPY_GONE_S = 30.0
"""A copy that has not reported for this long counts as gone."""

COPY_POLL_S = 0.5
"""How often a start looks whether the last process of its copy still reports."""

COPY_STOP_S = 2.0
"""How long the last reports of a collector that stops may take."""

COPIES_READ_S = 10.0
"""How often a collector compares its copies with the others, and looks what can be trimmed."""

# server/

REACTORS_MAX = 64
"""Of one server, each in a thread of its own."""

WAIT_S_MAX = 1.0
"""The longest wait of a loop: it sees the cause of a failed wake-up by then."""

SLOW_APPEND_S = 0.005
"""Once an append takes so long, all that is there is taken in before the next one."""

GATHER_S_MAX = 0.05
"""For as long as the last append took, and this at most."""

CLOSE_POLL_S = 0.0005
"""How often a loop checks whether the numbers of a client that has left are stored by now."""

CLOSE_POLL_GROWTH = 1.25
"""How much longer each further pause is: a NATS server may be away for long."""

CLOSE_POLL_MAX_S = 0.02
"""The longest such pause."""

IDLE_PASS_S = 0.1
"""What a pass counts of a client's silence, beyond the time that it was to wait."""

NO_SPACE_RETRY_S = 1.0
"""How often a log that is out of space is tried again."""

STOP_TRIES = 4
"""How often a stop tries to write to a full disk before it gives up."""

STOP_RETRY_S = 0.1
"""The pause between two of these tries."""

HEARTBEAT_INTERVAL_S = 1.0
"""How often the loop shows that it is alive, where a watchdog or a probe may ask."""

HEARTBEAT_STALE_S = 10.0
"""The age of the last sign from which on the loop counts as stuck."""

WAITING_LOOK_INTERVAL_S = 1.0
"""How often the backlogs are looked at while all slots are taken."""

WAITING_LINE_INTERVAL_S = 60.0
"""From one line about clients that begin to wait for a slot to the next, at least."""

DISCONNECT_LOG_PER_S_MAX = 20
"""How many disconnects a second are logged one by one with --verbose."""

# doctor/

FREE_DISK_BYTES_MIN = 1_000_000_000
"""Room for a hundred million numbers, below which `doctor` has a word to say."""

START_MEMORY_SPARE_BYTES = 8 * 1024 * 1024
"""What `doctor` wants to be left beside the bitmap and the buffers before it tries to have them."""

HUGE_PAGES_SHARE_MIN = 0.95
"""The share of a bitmap on huge pages that `doctor` is content with: its ends rarely are on one."""

# cli/

WATCH_WRITE_S = 1.0
"""How long a status may take to be written, before one that is watched is left out."""

STATUS_INTERVAL_S = 1.0
"""Over which `status` measures rates, and from one of its lines to the next."""

STATUS_HEADER_LINES = 20
"""How many lines of `status --watch` stand below each of their headers."""

SCRAPE_S = 5.0
"""How long a server may take for an answer to `status`."""

SCRAPE_BYTES_MAX = 1024 * 1024
"""Of its answer; more is not read."""

HELP_COLUMNS_MIN = 20
"""A help is laid out for a terminal of at least so many columns."""

CHECK_PROGRESS_BYTES = 16 * 1024 * 1024
"""How much of a log is read between two updates of the progress bar."""

# Relations.

assert BITMAP_BYTES * 8 == NUMBERS
assert HEADROOM_BYTES >= TAIL_BYTES_MAX
assert BATCH_BYTES >= 2 * CHUNK_BYTES_MAX
assert LINE_BYTES <= GATHER_PIECE_BYTES <= GATHER_BYTES < BATCH_BYTES - CHUNK_BYTES_MAX
assert BULK_SHARE_BYTES < BULK_BYTES <= RECEIVE_BYTES_PYTHON
assert STREAM_RETRY_S < STREAM_THREAD_WAIT_S < LAST_REPORT_WAIT_S < 1
assert 4 * DIAGNOSTIC_CHARACTERS_MAX < PIPE_BUF
assert SIGNAL_REPEAT_S < SIGNAL_THREAD_END_S < 1
assert ACCEPT_BACKOFF_S < ACCEPT_WARNING_INTERVAL_S
assert RING_SMALL_BUFFERS & (RING_SMALL_BUFFERS - 1) == 0
assert RING_LARGE_BUFFERS & (RING_LARGE_BUFFERS - 1) == 0
assert RING_SMALL_BYTES <= RING_LARGE_BYTES <= RECEIVE_BYTES
assert RING_COMPLETIONS_MAX >= 2 * ACCEPTS_PER_PASS_MAX
assert 2 * RETRY_S < RETRY_MAX_S
assert DRAIN_S + DRAIN_USED_S < 1
assert 2 * DRAIN_PAUSE_S < DRAIN_QUIET_S < DRAIN_USED_S < DRAIN_S
assert 2 * LOG_NAME_CHECK_S < LOG_RENAMED_S
assert TAKE_BYTES_MAX < WRITE_BEHIND_LAG_BYTES
assert LOG_SCAN_CHUNK_BYTES <= CHUNK_BYTES_MAX
assert PROBE_CHUNK_BYTES % LINE_BYTES == 0
assert RESUME_EXTEND_S > 2 * RESUME_PROGRESS_S
assert DESCRIPTORS_RESERVED >= 2 * HTTP_CLIENTS_MIN + 32
assert HTTP_CLIENTS_MIN <= HTTP_CLIENTS_MAX
assert HTTP_RECEIVE_BYTES <= HTTP_REQUEST_BYTES_MAX
assert HTTP_BURST_S / HTTP_SHARE <= 1
assert HTTP_PAUSE_S <= HTTP_RETRY_S <= HTTP_PAUSE_MAX_S
assert STATUS_INTERVAL_S <= PAGE_REFRESH_S < PAGE_RELOAD_S < PAGE_RATES_S_MAX
assert 2 * HTTP_PAUSE_MAX_S < HTTP_CLOSE_S < 1
assert PROFILE_POLL_S < PROFILE_START_S
assert NUMBERS <= LOAD_NUMBERS_MAX
assert LOAD_PREPARE_BYTES <= LOAD_PREPARE_BYTES_MAX
assert LOAD_SEND_BYTES <= LOAD_SEND_BYTES_MAX <= LOAD_ARENA_BYTES
assert STREAM_REQUESTS_MAX <= PARTITIONS_MAX
assert REPLICAS_POLL_S < REPLICAS_PROGRESS_S < REPLICAS_STUCK_S
assert BROKER_RECONNECT_S < BROKER_CONNECT_S < BROKER_START_S < BROKER_REQUEST_S
assert (BROKER_SILENT_PINGS + 1) * BROKER_PING_S <= BROKER_UNSENT_S
assert BROKER_UNSENT_S + BROKER_CONNECT_S + 2 * BROKER_ASK_AGAIN_S < BROKER_REQUEST_S
assert COPY_TELL_S + BROKER_LEAVE_S + BROKER_LOOK_S + BROKER_ASK_AGAIN_S < 15
assert BROKER_LEADER_S < BROKER_REQUEST_S
assert BROKER_PENDING_BYTES_MAX >= 4 * FORWARD_IN_FLIGHT * FORWARD_BATCH_BYTES
assert FORWARD_BATCH_BYTES + FORWARD_HEADER_BYTES_MAX < MESSAGE_BYTES_MAX
assert FORWARD_IN_FLIGHT <= FORWARD_BATCHES_MAX
assert 3 * NODE_STATUS_INTERVAL_S < NODE_GONE_S < NODES_KEEP_S
assert COLLECTOR_WRITE_BYTES < COLLECTOR_BATCH_BYTES
assert COLLECTOR_BATCH_BYTES >= MESSAGE_BYTES_MAX // 4 * LINE_BYTES
assert MESSAGE_BYTES_MAX < READ_BYTES <= READ_AHEAD_BYTES
assert READ_MESSAGES <= READ_AHEAD_MESSAGES
assert READ_RETRY_S < READ_WAIT_S <= READ_IDLE_S < READ_IDLE_S_MAX
assert 2 * READ_HEARTBEAT_S < READ_SILENT_S < READ_EXPIRES_S < READ_CONSUMER_S
assert READ_SILENT_S + READ_WAIT_S + READ_ANSWER_S + READ_RETRY_S < 10
assert 2 * COPY_TELL_S * COPY_UNCHANGED_TELLS < COPY_GONE_S
assert COPY_TELL_S * COPY_UNCHANGED_TELLS + 2 * COPIES_READ_S < 60
assert 2 * INDEX_RECORDS_KEPT < INDEX_RECORDS_MAX
assert COMMIT_INTERVAL_S < NO_SPACE_RETRY_S
assert COMMIT_INTERVAL_S < INDEX_SYNC_INTERVAL_S < COPY_TELL_S
assert CLOSE_POLL_S < CLOSE_POLL_MAX_S < WAIT_S_MAX
assert SLOW_APPEND_S < GATHER_S_MAX < IDLE_PASS_S
assert 2 * max(HEARTBEAT_INTERVAL_S, DRAIN_S, FORWARD_ROOM_ALL_S) < HEARTBEAT_STALE_S
assert LOG_SCAN_CHUNK_BYTES <= CHECK_PROGRESS_BYTES
