/* A stack to test: lwIP on a TAP device, with four services and no agent.
 * cc services.c -o services $(pkg-config --cflags --libs lwip) -lpthread
 * PRECONFIGURED_TAPIF=tap0 ./services 192.0.2.1 255.255.255.0 192.0.2.2 */
#include <lwip/init.h>
#include <lwip/sockets.h>
#include <lwip/tcpip.h>
#include <netif/tapif.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static struct netif netif;

enum what { ECHO = 7, DISCARD = 9, CLOSE = 10, HOLD = 11 };

struct connection {
    int socket;
    enum what what;
};

static void serve(void *argument)
{
    struct connection *connection = argument;
    char octets[2048];
    int size;
    while ((size = lwip_recv(connection->socket, octets, sizeof octets, 0)) > 0) {
        if (connection->what == ECHO)
            lwip_send(connection->socket, octets, size, 0);
        if (connection->what == CLOSE)
            break;
    }
    if (connection->what != HOLD)
        lwip_close(connection->socket);
    mem_free(connection);
}

static void listen_on(void *argument)
{
    enum what what = *(enum what *)argument;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = lwip_htons(what)};
    int listener = lwip_socket(AF_INET, SOCK_STREAM, 0);
    lwip_bind(listener, (struct sockaddr *)&any, sizeof any);
    lwip_listen(listener, 16);
    for (;;) {
        struct connection *connection = mem_malloc(sizeof *connection);
        connection->what = what;
        connection->socket = lwip_accept(listener, NULL, NULL);
        sys_thread_new("serve", serve, connection, 0, 0);
    }
}

static void up(void *arguments)
{
    char **address = arguments;
    ip4_addr_t own, mask, gateway;
    ip4addr_aton(address[1], &own);
    ip4addr_aton(address[2], &mask);
    ip4addr_aton(address[3], &gateway);
    netif_add(&netif, &own, &mask, &gateway, NULL, tapif_init, tcpip_input);
    netif_set_default(&netif);
    netif_set_up(&netif);
    netif_set_link_up(&netif);
}

int main(int count, char **arguments)
{
    static enum what all[] = {ECHO, DISCARD, CLOSE, HOLD};
    if (count != 4)
        return fprintf(stderr, "services ADDRESS NETMASK GATEWAY\n"), 2;
    tcpip_init(up, arguments);
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        sys_thread_new("listen", listen_on, &all[i], 0, 0);
    fprintf(stderr, "ready\n");
    for (;;)
        pause();
}
