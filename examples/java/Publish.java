// Publishes events directly to Kafka: java -cp 'lib/*' Publish.java SCHEMAS BOOTSTRAP USER TEXT logs a user in and sets the
// user's custom status. SCHEMAS is the directory of the .avsc files.
//
// A valid event has the user as key, the partition of the Java client's default partitioner, and a value in Avro's
// single-object encoding, which Avro's BinaryMessageEncoder writes. See docs/publishing.md.

import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Future;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.generic.GenericRecordBuilder;
import org.apache.avro.message.BinaryMessageEncoder;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class Publish {
    static final String TOPIC = "presence.events";

    public static void main(String[] args) throws Exception {
        String bootstrap = args[1], user = args[2], text = args[3];
        Schema schema = new Schema.Parser().parse(Files.readString(Path.of(args[0], "event.avsc")));
        var encoder = new BinaryMessageEncoder<GenericRecord>(GenericData.get(), schema);
        // Retries keep the order and write each event once: this is the client's default.
        Map<String, Object> settings = Map.of("bootstrap.servers", bootstrap, "acks", "all");
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteArraySerializer())) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            // A lease of ten minutes. Every partition needs the record, so it has no key.
            byte[] lease = bytes(encoder, new GenericRecordBuilder(schema)
                .set("type", "lease").set("gateway", "java-1").set("epoch", 1L).set("ttl_ms", 600_000L));
            for (var partition : producer.partitionsFor(TOPIC)) {
                sent.add(producer.send(new ProducerRecord<>(TOPIC, partition.partition(), null, lease)));
            }
            byte[] connect = bytes(encoder, new GenericRecordBuilder(schema)
                .set("type", "connect").set("user", user).set("platform", "android").set("device", "phone")
                .set("gateway", "java-1").set("epoch", 1L).set("conn", 1L).set("intent", "login"));
            byte[] status = bytes(encoder, new GenericRecordBuilder(schema)
                .set("type", "custom_status").set("user", user).set("text", text));
            for (byte[] event : List.of(connect, status)) {
                sent.add(producer.send(new ProducerRecord<>(TOPIC, user, event)));
            }
            for (var one : sent) {
                RecordMetadata where = one.get();
                System.out.println(where.partition() + " " + where.offset());
            }
        }
    }

    static byte[] bytes(BinaryMessageEncoder<GenericRecord> encoder, GenericRecordBuilder event) throws Exception {
        ByteBuffer buffer = encoder.encode(event.build());
        byte[] bytes = new byte[buffer.remaining()];
        buffer.get(bytes);
        return bytes;
    }
}
