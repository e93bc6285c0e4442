// Publishes logins as programs in Java do that know nothing of Rollcall's schema:
//   Stacks.java BOOTSTRAP REGISTRY COUNT WHAT...
// REGISTRY is the URL of Apicurio's own interface. COUNT users WHAT-0, WHAT-1 and so on log in for each WHAT:
//   serializer   Avro's generic records with logical types, by Apicurio's serializer, which puts the schema's id into a header
//   prefix       the same with the id before the datum, as Confluent's serializer does
//   global       the same with the global id in a header, which is Apicurio's default
//   connect      rows of Kafka Connect, by Apicurio's converter
//   decimal      the same with a number as JDBC gives a NUMERIC: a decimal

import io.apicurio.registry.serde.avro.AvroKafkaSerializer;
import io.apicurio.registry.utils.converter.AvroConverter;
import java.math.BigDecimal;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Future;
import org.apache.avro.Conversions;
import org.apache.avro.Schema;
import org.apache.avro.data.TimeConversions;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.generic.GenericRecordBuilder;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.connect.data.Decimal;
import org.apache.kafka.connect.data.SchemaBuilder;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.data.Timestamp;

public class Stacks {
    static final String TOPIC = "presence.events";

    static final Schema LOGIN = new Schema.Parser().parse("""
        {"type": "record", "name": "Login", "namespace": "com.example.presence", "doc": "Somebody came.", "fields": [
          {"name": "authAt", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}], "default": null},
          {"name": "device", "type": {"type": "string", "logicalType": "uuid"}},
          {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
          {"name": "type", "type": {"type": "enum", "name": "Kind", "symbols": ["disconnect", "connect"], "default": "connect"}},
          {"name": "user", "type": {"type": "string", "avro.java.string": "String"}, "aliases": ["uid"]},
          {"name": "platform", "type": {"type": "enum", "name": "Platform", "symbols": ["ios", "android"]}},
          {"name": "gateway", "type": "string"},
          {"name": "epoch", "type": {"type": "long", "logicalType": "timestamp-millis"}},
          {"name": "conn", "type": "int"},
          {"name": "intent", "type": [{"type": "enum", "name": "Intent", "symbols": ["login", "resume"]}, "null"]}]}
        """);

    public static void main(String[] args) throws Exception {
        GenericData.get().addLogicalTypeConversion(new TimeConversions.TimestampMillisConversion());
        GenericData.get().addLogicalTypeConversion(new Conversions.UUIDConversion());
        GenericData.get().addLogicalTypeConversion(new Conversions.DecimalConversion());
        for (String what : List.of(args).subList(3, args.length)) {
            List<String> users = new ArrayList<>();
            for (int number = 0; number < Integer.parseInt(args[2]); number++) {
                users.add(what + "-" + number);
            }
            publish(what, args[0], args[1], users);
        }
    }

    static void publish(String what, String bootstrap, String registry, List<String> users) throws Exception {
        Map<String, Object> settings = Map.of(
            "apicurio.registry.url", registry,
            "apicurio.registry.auto-register", true,
            // Ids of 4 bytes, by which the interface of Confluent's registry knows the schema.
            "apicurio.registry.as-confluent", true,
            "apicurio.registry.use-id", what.equals("global") ? "globalId" : "contentId",
            "apicurio.registry.headers.enabled", what.equals("serializer") || what.equals("global"),
            // The subject of the topic has Rollcall's own schema, which others must not replace.
            "apicurio.registry.artifact-resolver-strategy", "io.apicurio.registry.serde.avro.strategy.RecordIdStrategy");
        switch (what) {
            case "serializer", "prefix", "global" -> {
                try (var serializer = new AvroKafkaSerializer<GenericRecord>()) {
                    serializer.configure(settings, false);
                    publish(bootstrap, serializer, users, (user, headers) -> record(user));
                }
            }
            case "connect", "decimal" -> {
                try (var converter = new AvroConverter<Object>()) {
                    converter.configure(settings, false);
                    publish(bootstrap, new ByteArraySerializer(), users, (user, headers) -> {
                        Struct row = row(user, what.equals("decimal"));
                        return converter.fromConnectData(TOPIC, headers, row.schema(), row);
                    });
                }
            }
            default -> throw new IllegalArgumentException(what);
        }
    }

    interface Making<T> {
        T of(String user, Headers headers) throws Exception;
    }

    static <T> void publish(String bootstrap, Serializer<T> serializer, List<String> users, Making<T> value) throws Exception {
        try (var producer = new KafkaProducer<>(Map.of("bootstrap.servers", bootstrap), new StringSerializer(), serializer)) {
            List<Future<?>> sent = new ArrayList<>();
            for (String user : users) {
                Headers headers = new RecordHeaders();
                T made = value.of(user, headers);
                sent.add(producer.send(new ProducerRecord<>(TOPIC, null, user, made, headers)));
            }
            for (var one : sent) {
                one.get();
            }
        }
    }

    static GenericRecord record(String user) {
        Schema intent = LOGIN.getField("intent").schema().getTypes().get(0);
        return new GenericRecordBuilder(LOGIN)
            .set("authAt", Instant.now())
            .set("device", UUID.randomUUID())
            .set("price", new BigDecimal("12.50"))
            .set("type", new GenericData.EnumSymbol(LOGIN.getField("type").schema(), "connect"))
            .set("user", user)
            .set("platform", new GenericData.EnumSymbol(LOGIN.getField("platform").schema(), "android"))
            .set("gateway", "java-1")
            .set("epoch", Instant.ofEpochMilli(1_000))
            .set("conn", 1)
            .set("intent", new GenericData.EnumSymbol(intent, "login"))
            .build();
    }

    static Struct row(String user, boolean isDecimal) {
        var epoch = isDecimal ? Decimal.builder(0) : SchemaBuilder.int64();
        var schema = SchemaBuilder.struct().name(isDecimal ? "com.example.jdbc.Login" : "com.example.connect.Login").version(3)
            .doc("A row").parameter("table", "logins")
            .field("type", SchemaBuilder.string().optional().defaultValue("connect").build())
            .field("user", SchemaBuilder.string().doc("the user").build())
            .field("platform", SchemaBuilder.string().optional().parameter("column", "PLATFORM").build())
            .field("device", SchemaBuilder.string().optional().build())
            .field("gateway", SchemaBuilder.string().defaultValue("none").build())
            .field("epoch", epoch.optional().build())
            .field("conn", SchemaBuilder.int16().build())
            .field("intent", SchemaBuilder.string().optional().build())
            .field("client", SchemaBuilder.string().optional().build())
            .field("auth_at", Timestamp.builder().optional().build())
            .field("price", Decimal.builder(2).optional().build())
            .field("tags", SchemaBuilder.map(SchemaBuilder.string().build(), SchemaBuilder.int32().build()).optional().build())
            .build();
        return new Struct(schema)
            .put("type", "connect")
            .put("user", user)
            .put("platform", "android")
            .put("device", "d1")
            .put("gateway", "connect-1")
            .put("epoch", isDecimal ? new BigDecimal(1) : (Object) 1L)
            .put("conn", (short) 1)
            .put("intent", "login")
            .put("auth_at", java.util.Date.from(Instant.now()))
            .put("price", new BigDecimal("12.50"))
            .put("tags", Map.of("a", 1));
    }
}
