// Kafka Streams over the changes: java -cp 'lib/*' OnlineCount.java SCHEMAS BOOTSTRAP STATE counts users by their status
// and prints each count as it changes. SCHEMAS is the directory of the .avsc files, STATE one for the state of Streams.
//
// A user's newest change has the complete state, so a table by user, regrouped by status, is sufficient. See
// docs/subscribing.md.

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.Properties;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.message.BinaryMessageDecoder;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;

public class OnlineCount {
    static final String TOPIC = "presence.changes";

    public static void main(String[] args) throws Exception {
        Schema schema = new Schema.Parser().parse(Files.readString(Path.of(args[0], "change.avsc")));
        // Also reads values of a newer or older schema that was added with addSchema.
        var decoder = new BinaryMessageDecoder<GenericRecord>(GenericData.get(), schema);
        Deserializer<GenericRecord> deserializer = (topic, bytes) -> {
            try {
                return bytes == null ? null : decoder.decode(bytes);
            } catch (java.io.IOException error) {
                throw new java.io.UncheckedIOException("this is no change in single-object encoding", error);
            }
        };
        Serde<GenericRecord> changes = Serdes.serdeFrom((topic, change) -> { throw new AssertionError(); }, deserializer);

        var builder = new StreamsBuilder();
        Serde<String> text = Serdes.String();
        builder.stream(TOPIC, Consumed.with(text, changes))
            .mapValues(change -> change.get("after").toString())
            .toTable(Materialized.with(text, text))
            .groupBy((user, status) -> KeyValue.pair(status, user), Grouped.with(text, text))
            .count()
            .toStream()
            .foreach((status, count) -> System.out.println(status + " " + count));

        var settings = new Properties();
        settings.putAll(Map.of(
            "application.id", "online-count",
            "bootstrap.servers", args[1],
            "state.dir", args[2],
            "auto.offset.reset", "earliest",
            // Reads only committed changes, and counts each once.
            "processing.guarantee", "exactly_once_v2",
            // Prints without delay.
            "statestore.cache.max.bytes", "0",
            "commit.interval.ms", "100"));
        var streams = new KafkaStreams(builder.build(), settings);
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }
}
