import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.RocksDBConfigSetter;
import org.apache.kafka.streams.state.Stores;
import org.rocksdb.BlockBasedTableConfig;
import org.rocksdb.BloomFilter;
import org.rocksdb.Cache;
import org.rocksdb.LRUCache;
import org.rocksdb.Options;

/**
 * Presence as a Kafka Streams job: the yardstick of benches/kafka.rs. It reads the events that Rollcall reads and gives a change
 * for each that Rollcall gives one for, exactly once, with its state in RocksDB and in a changelog topic.
 *
 * <p>It is written for speed. There is one store, with one row for each user. A heartbeat changes the bytes of the row in place,
 * without decoding it. Deadlines are kept in memory, in buckets of a second, are set again only when they come due, and are found
 * again from the store after a restart. The record cache is off, which is its best setting for this load.
 *
 * <p>It does less than Rollcall: connect, heartbeat, disconnect and time-outs of one policy. It has no other events, no kicks, no
 * leases, no early ends and no counts, writes no topic of newest states, and cannot be replayed to the same bytes.
 */
public final class PresenceJob {
    static final long TIMEOUT_MS = 400_000;
    static final byte[] CHANGE_HEADER = new byte[10];

    public static void main(String[] args) throws IOException, InterruptedException {
        if (args.length != 6) {
            System.err.println("PresenceJob needs BOOTSTRAP EVENTS CHANGES APPLICATION_ID STATE_DIRECTORY THREADS; see run");
            System.exit(2);
        }
        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, args[3]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, args[4]);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, args[5]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
        settings.put(StreamsConfig.ROCKSDB_CONFIG_SETTER_CLASS_CONFIG, Rocks.class);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        // Larger batches than by default, to read and to write.
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        settings.put(StreamsConfig.consumerPrefix("max.poll.records"), 10_000);
        settings.put(StreamsConfig.consumerPrefix("max.partition.fetch.bytes"), 4 << 20);
        settings.put(StreamsConfig.consumerPrefix("fetch.max.bytes"), 32 << 20);
        settings.put(StreamsConfig.producerPrefix("batch.size"), 256 << 10);
        settings.put(StreamsConfig.producerPrefix("buffer.memory"), 64 << 20);
        settings.put(StreamsConfig.producerPrefix("linger.ms"), 20);

        KafkaStreams streams = new KafkaStreams(topology(args[1], args[2]), settings);
        CountDownLatch ended = new CountDownLatch(1);
        streams.setStateListener((now, before) -> {
            if (now == KafkaStreams.State.RUNNING) {
                System.out.println("running");
            }
            if (now == KafkaStreams.State.ERROR) {
                System.out.println("failed");
                ended.countDown();
            }
        });
        streams.start();
        Thread end = new Thread(() -> {
            try {
                while (System.in.read() >= 0) {
                    continue;
                }
            } catch (IOException closed) {
                System.err.println(closed);
            }
            ended.countDown();
        });
        end.setDaemon(true);
        end.start();
        ended.await();
        streams.close(Duration.ofSeconds(30));
    }

    static Topology topology(String events, String changes) {
        return new Topology()
                .addSource("events", new ByteArrayDeserializer(), new ByteArrayDeserializer(), events)
                .addProcessor("presence", Presence::new, "events")
                .addStateStore(
                        Stores.keyValueStoreBuilder(
                                Stores.persistentKeyValueStore("users"), Serdes.ByteArray(), Serdes.ByteArray()),
                        "presence")
                .addSink("changes", changes, new ByteArraySerializer(), new ByteArraySerializer(), "presence");
    }

    /** One block cache for all partitions, memtables that are not full at once, and filters for users who are new. */
    public static final class Rocks implements RocksDBConfigSetter {
        private static final Cache CACHE = new LRUCache(256 << 20);
        private final BloomFilter filter = new BloomFilter(10);

        @Override
        public void setConfig(String store, Options options, Map<String, Object> settings) {
            BlockBasedTableConfig table = (BlockBasedTableConfig) options.tableFormatConfig();
            table.setBlockCache(CACHE);
            table.setFilterPolicy(filter);
            table.setCacheIndexAndFilterBlocks(true);
            options.setTableFormatConfig(table);
            options.setWriteBufferSize(32 << 20);
            options.setMaxWriteBufferNumber(3);
        }

        @Override
        public void close(String store, Options options) {
            filter.close();
        }
    }

    /**
     * A user's row: version (8 bytes), number of devices (1), and for each device: status (1), last seen (8), deadline (8),
     * evidence (8), epoch (8), conn (8), then platform, device and gateway, each with its length (1).
     */
    static final class Presence implements Processor<byte[], byte[], byte[], byte[]> {
        private static final int FIRST = 9;
        private static final int FIXED = 41;
        private static final byte OFFLINE = 0;
        private static final byte PUSH_ONLINE = 1;
        private static final byte ONLINE = 2;
        private static final String[] STATUS = {"offline", "push_online", "online"};

        private final TreeMap<Long, ArrayList<byte[]>> deadlines = new TreeMap<>();
        private final Event event = new Event();
        private ProcessorContext<byte[], byte[]> context;
        private KeyValueStore<byte[], byte[]> users;

        @Override
        public void init(ProcessorContext<byte[], byte[]> context) {
            this.context = context;
            users = context.getStateStore("users");
            try (KeyValueIterator<byte[], byte[]> all = users.all()) {
                while (all.hasNext()) {
                    var row = all.next();
                    long deadline = earliest(row.value);
                    if (deadline != Long.MAX_VALUE) {
                        at(deadline).add(row.key);
                    }
                }
            }
            context.schedule(Duration.ofSeconds(1), PunctuationType.STREAM_TIME, this::expire);
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            if (!event.read(record.value())) {
                return;
            }
            byte[] user = record.key();
            byte[] row = users.get(user);
            long now = record.timestamp();
            long offset = context.recordMetadata().orElseThrow().offset();
            switch (event.type) {
                case Event.HEARTBEAT -> heartbeat(user, row, now, offset);
                case Event.CONNECT -> connect(user, row, now, offset);
                case Event.DISCONNECT -> disconnect(user, row, now, offset);
                default -> { }
            }
        }

        private void heartbeat(byte[] user, byte[] row, long now, long offset) {
            int device = row == null ? -1 : find(row);
            if (device < 0 || !isCurrent(row, device)) {
                return;
            }
            ByteBuffer buffer = ByteBuffer.wrap(row);
            byte before = greatest(row);
            boolean revives = row[device] != ONLINE;
            row[device] = ONLINE;
            buffer.putLong(device + 1, now).putLong(device + 9, now + TIMEOUT_MS).putLong(device + 17, offset);
            if (revives) {
                buffer.putLong(0, buffer.getLong(0) + 1);
                at(now + TIMEOUT_MS).add(user);
                give(user, row, device, PUSH_ONLINE, before, now, offset, "revive");
            }
            users.put(user, row);
        }

        private void connect(byte[] user, byte[] row, long now, long offset) {
            byte[] old = row;
            int device = row == null ? -1 : find(row);
            byte before = row == null ? OFFLINE : greatest(row);
            if (device < 0) {
                row = withDevice(row);
                device = row.length - event.deviceLength();
            } else if (isSuperseded(row, device)) {
                return;
            } else {
                row = withoutDevice(row, device);
                row = withDevice(row);
                device = row.length - event.deviceLength();
            }
            byte deviceBefore = old == null || find(old) < 0 ? OFFLINE : old[find(old)];
            ByteBuffer buffer = ByteBuffer.wrap(row);
            row[device] = ONLINE;
            buffer.putLong(device + 1, now).putLong(device + 9, now + TIMEOUT_MS).putLong(device + 17, offset);
            displaceOthers(row, device);
            if (deviceBefore != ONLINE) {
                buffer.putLong(0, buffer.getLong(0) + 1);
                at(now + TIMEOUT_MS).add(user);
                give(user, row, device, deviceBefore, before, now, offset, "login");
            }
            users.put(user, row);
        }

        private void disconnect(byte[] user, byte[] row, long now, long offset) {
            int device = row == null ? -1 : find(row);
            if (device < 0 || !isCurrent(row, device) || row[device] != ONLINE) {
                return;
            }
            ByteBuffer buffer = ByteBuffer.wrap(row);
            byte before = greatest(row);
            row[device] = PUSH_ONLINE;
            buffer.putLong(0, buffer.getLong(0) + 1);
            give(user, row, device, ONLINE, before, now, offset, "closed");
            users.put(user, row);
        }

        /** Fires deadlines up to a time. One that has moved since it was set is set again. */
        private void expire(long now) {
            while (!deadlines.isEmpty() && deadlines.firstKey() <= now / 1_000) {
                for (byte[] user : deadlines.pollFirstEntry().getValue()) {
                    byte[] row = users.get(user);
                    if (row == null) {
                        continue;
                    }
                    ByteBuffer buffer = ByteBuffer.wrap(row);
                    boolean changed = false;
                    for (int device = FIRST; device < row.length; device = next(row, device)) {
                        long deadline = buffer.getLong(device + 9);
                        if (row[device] == ONLINE && deadline <= now) {
                            byte before = greatest(row);
                            row[device] = PUSH_ONLINE;
                            buffer.putLong(0, buffer.getLong(0) + 1);
                            give(user, row, device, ONLINE, before, deadline, buffer.getLong(device + 17), "timeout");
                            changed = true;
                        }
                    }
                    if (changed) {
                        users.put(user, row);
                    }
                    long deadline = earliest(row);
                    if (deadline != Long.MAX_VALUE) {
                        at(deadline).add(user);
                    }
                }
            }
        }

        /** The second after a deadline. */
        private List<byte[]> at(long deadline) {
            return deadlines.computeIfAbsent(deadline / 1_000 + 1, second -> new ArrayList<>());
        }

        private static long earliest(byte[] row) {
            ByteBuffer buffer = ByteBuffer.wrap(row);
            long earliest = Long.MAX_VALUE;
            for (int device = FIRST; device < row.length; device = next(row, device)) {
                if (row[device] == ONLINE) {
                    earliest = Math.min(earliest, buffer.getLong(device + 9));
                }
            }
            return earliest;
        }

        private static byte greatest(byte[] row) {
            byte greatest = OFFLINE;
            for (int device = FIRST; device < row.length; device = next(row, device)) {
                greatest = (byte) Math.max(greatest, row[device]);
            }
            return greatest;
        }

        private static int next(byte[] row, int device) {
            int at = device + FIXED;
            for (int text = 0; text < 3; text++) {
                at += 1 + (row[at] & 0xff);
            }
            return at;
        }

        private int find(byte[] row) {
            for (int device = FIRST; device < row.length; device = next(row, device)) {
                int platform = device + FIXED;
                int id = platform + 1 + (row[platform] & 0xff);
                if (event.platform.equals(row, platform) && event.device.equals(row, id)) {
                    return device;
                }
            }
            return -1;
        }

        private boolean isCurrent(byte[] row, int device) {
            ByteBuffer buffer = ByteBuffer.wrap(row);
            int platform = device + FIXED;
            int id = platform + 1 + (row[platform] & 0xff);
            int gateway = id + 1 + (row[id] & 0xff);
            return buffer.getLong(device + 25) == event.epoch
                    && buffer.getLong(device + 33) == event.conn
                    && event.gateway.equals(row, gateway);
        }

        private boolean isSuperseded(byte[] row, int device) {
            ByteBuffer buffer = ByteBuffer.wrap(row);
            long epoch = buffer.getLong(device + 25);
            return epoch > event.epoch || epoch == event.epoch && buffer.getLong(device + 33) > event.conn;
        }

        /** One login at a time: the user's other devices are away. */
        private static void displaceOthers(byte[] row, int kept) {
            for (int device = FIRST; device < row.length; device = next(row, device)) {
                if (device != kept) {
                    row[device] = OFFLINE;
                }
            }
        }

        private byte[] withDevice(byte[] row) {
            int length = row == null ? FIRST : row.length;
            byte[] grown = row == null ? new byte[FIRST + event.deviceLength()] : Arrays.copyOf(row, length + event.deviceLength());
            grown[8]++;
            ByteBuffer buffer = ByteBuffer.wrap(grown);
            buffer.putLong(length + 25, event.epoch).putLong(length + 33, event.conn).position(length + FIXED);
            event.platform.write(buffer);
            event.device.write(buffer);
            event.gateway.write(buffer);
            return grown;
        }

        private static byte[] withoutDevice(byte[] row, int device) {
            int end = next(row, device);
            byte[] shrunk = new byte[row.length - (end - device)];
            System.arraycopy(row, 0, shrunk, 0, device);
            System.arraycopy(row, end, shrunk, device, row.length - end);
            shrunk[8]--;
            return shrunk;
        }

        /** A change, with the fields of schemas/change.avsc; `seq` is that of the user. */
        private void give(
                byte[] user, byte[] row, int device, byte deviceBefore, byte before, long at, long evidence, String cause) {
            var metadata = context.recordMetadata();
            long offset = metadata.map(m -> m.offset()).orElse(0L);
            int partition = metadata.map(m -> m.partition()).orElse(0);
            ByteBuffer row0 = ByteBuffer.wrap(row);
            Avro out = new Avro();
            out.bytes.put(CHANGE_HEADER);
            out.text((partition + "-" + offset + "-0").getBytes(StandardCharsets.UTF_8));
            out.number(partition);
            out.number(offset);
            out.number(row0.getLong(0));
            out.text(user);
            out.number(row0.getLong(0));
            out.number(at);
            out.number(context.currentStreamTimeMs());
            out.text(cause.getBytes(StandardCharsets.UTF_8));
            out.text(STATUS[before].getBytes(StandardCharsets.UTF_8));
            out.text(STATUS[greatest(row)].getBytes(StandardCharsets.UTF_8));
            out.number(1);
            int text = device + FIXED;
            for (int n = 0; n < 3; n++) {
                out.text(Arrays.copyOfRange(row, text + 1, text + 1 + (row[text] & 0xff)));
                text += 1 + (row[text] & 0xff);
            }
            out.text(STATUS[deviceBefore].getBytes(StandardCharsets.UTF_8));
            out.text(STATUS[row[device]].getBytes(StandardCharsets.UTF_8));
            out.number(0);
            out.number(0);
            out.number(evidence);
            byte[] change = Arrays.copyOf(out.bytes.array(), out.bytes.position());
            context.forward(new Record<>(user, change, Math.max(0, context.currentStreamTimeMs())));
        }
    }

    /** Writes the parts of an Avro datum. */
    static final class Avro {
        final ByteBuffer bytes = ByteBuffer.allocate(1_024);

        void number(long number) {
            long zigzag = number << 1 ^ number >> 63;
            while ((zigzag & ~0x7fL) != 0) {
                bytes.put((byte) (zigzag & 0x7f | 0x80));
                zigzag >>>= 7;
            }
            bytes.put((byte) zigzag);
        }

        void text(byte[] text) {
            number(text.length);
            bytes.put(text);
        }
    }

    /** A text inside the event that was read last. */
    static final class Text {
        private byte[] in;
        private int from;
        private int length;

        void set(byte[] in, int from, int length) {
            this.in = in;
            this.from = from;
            this.length = length;
        }

        /** Whether a text with its length before it is this one. */
        boolean equals(byte[] row, int at) {
            return (row[at] & 0xff) == length && Arrays.equals(in, from, from + length, row, at + 1, at + 1 + length);
        }

        void write(ByteBuffer into) {
            into.put((byte) length).put(in, from, length);
        }
    }

    /** The fields of schemas/event.avsc that the job needs, read where they are. */
    static final class Event {
        static final int OTHER = 0;
        static final int CONNECT = 1;
        static final int HEARTBEAT = 2;
        static final int DISCONNECT = 3;
        private static final int HEADER = 10;

        int type;
        final Text platform = new Text();
        final Text device = new Text();
        final Text gateway = new Text();
        long epoch;
        long conn;
        private byte[] in;
        private int at;

        /** Returns whether it is an event of a connection. */
        boolean read(byte[] value) {
            if (value == null || value.length < HEADER || (value[0] & 0xff) != 0xc3 || value[1] != 1) {
                return false;
            }
            in = value;
            at = HEADER;
            int length = (int) number();
            type = switch (in[at]) {
                case 'c' -> length == 7 ? CONNECT : OTHER;
                case 'h' -> length == 9 ? HEARTBEAT : OTHER;
                case 'd' -> DISCONNECT;
                default -> OTHER;
            };
            at += length;
            if (type == OTHER || !optional(null) || !optional(platform) || !optional(device) || !optional(gateway)) {
                return false;
            }
            if (number() != 1) {
                return false;
            }
            epoch = number();
            if (number() != 1) {
                return false;
            }
            conn = number();
            return true;
        }

        int deviceLength() {
            return Presence.FIXED + 3 + platform.length + device.length + gateway.length;
        }

        private boolean optional(Text text) {
            if (number() != 1) {
                return false;
            }
            int length = (int) number();
            if (text != null) {
                text.set(in, at, length);
            }
            at += length;
            return true;
        }

        private long number() {
            long zigzag = 0;
            int shift = 0;
            byte next;
            do {
                next = in[at++];
                zigzag |= (long) (next & 0x7f) << shift;
                shift += 7;
            } while (next < 0);
            return zigzag >>> 1 ^ -(zigzag & 1);
        }
    }
}
