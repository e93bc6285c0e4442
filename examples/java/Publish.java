// Publishes events straight to Kafka: java -cp 'lib/*' Publish.java SCHEMAS BOOTSTRAP USER TEXT logs somebody in and sets
// their custom status. SCHEMAS is the directory of the .avsc files.
//
// What makes an event valid: the user as key, the partitioner that Kafka's Java client has anyway, and Avro in
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
        // In order and once, whatever is tried again: that is this client's default.
        Map<String, Object> settings = Map.of("bootstrap.servers", bootstrap, "acks", "all");
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteArraySerializer())) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            // The gateway lives for ten minutes more. Every partition must hear it, so it has no key.
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
